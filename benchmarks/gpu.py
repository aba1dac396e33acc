"""The GPU engine on this machine's GPU: batches, copies beside computation, and recordings a second of a worker."""

import json
import os
import re
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from benchmarks.measure import table
from benchmarks.networks import prepared
from testbed.gpu import environment
from testbed.site import event, site
from testbed.worker import Worker
from vaultml_worker import model
from vaultml_worker.dev import agent
from vaultml_worker.dev import footage as footage_
from vaultml_worker.dev.broker import EmbeddedBroker
from vaultml_worker.engines import Gpu, Options, Silent, bench
from vaultml_worker.engines.bench import Measured
from vaultml_worker.engines.tensorrt import TensorRtEngine, missing
from vaultml_worker.queues.kafka import reader
from vaultml_worker.records import InvalidInput, Model

NETWORKS = tuple(os.environ.get("NETWORKS", "yolov3-608,yolov3-416,yolov3-tiny-416").split(","))
BATCHES = tuple(int(each) for each in os.environ.get("BATCHES", "1,2,4,8,16,32").split(","))
SECONDS = float(os.environ.get("SECONDS", "2"))
"""Of each measurement of the engine; a worker's takes ten times as long."""
_WORKER_S = 10 * SECONDS
_IN_FLIGHT = (4, 16)
"""Recordings in work at a time: as a worker is set up by default, and as many as one may need to fill a GPU."""
_CLIPS, _CLIP_S, _PER_CLIP = 8, 8.0, 5
_START_S = 600
_UNREACHED = "0.9999999"
"""Threshold for random weights, which see a thousand things in every frame: not what a worker's time should go into."""
_AHEAD = 500
"""Events that wait at least: the worker must never want for any."""
_HEADER = (
    *("network", "batch", "latency, ms", "frames/s", "frames/s without copies"),
    *("beside published", "of peak, %", "copies hidden, %"),
)


@dataclass(frozen=True, slots=True)
class Reference:
    """A GPU's dense fp16 peak in 10^12 operations a second, and YOLOv3's frames a second there by size of the network.

    416 is published (fp16, batch 16), 608 what is to be expected from it.
    """

    peak: float
    frames: dict[int, int]


REFERENCES = {
    "T4": Reference(65, {416: 284, 608: 130}),
    "A10": Reference(125, {608: 260}),
    "A100": Reference(312, {608: 640}),
    "H100 80GB HBM3": Reference(989, {608: 2000}),
    "H200(?! NVL)": Reference(989, {}),
}


def run(footage: Path | None) -> str:
    """Measure all networks; gives Markdown. Raises InvalidInput when there is no GPU that can be used."""
    if (why := missing()) is not None:
        raise InvalidInput(why)
    heard = _Heard()
    rows: list[list[str]] = []
    workers: list[list[str]] = []
    with tempfile.TemporaryDirectory() as scratch, EmbeddedBroker() as broker:
        folder = Path(scratch)
        clips = [body for body, _, _ in islice(agent.cut(footage or footage_.find(None), _CLIP_S), _CLIPS)]
        for name in NETWORKS:
            cfg, weights = prepared(name, folder)
            loaded = model.load(cfg, weights, precision="fp16")
            engine = TensorRtEngine(loaded, Options(folder / "engines", max(BATCHES), heard))
            try:
                rows += _rows(name, loaded, bench.measure(engine, loaded, BATCHES, SECONDS), heard.gpu_in_use.name)
                batch = engine.batch
            finally:
                engine.close()
            variables = {
                **environment.own(),
                "ENGINE": "tensorrt",
                "ENGINE_BATCH": str(max(BATCHES)),
                "ENGINE_CACHE": str(folder / "engines"),
                "MODEL": str(cfg),
                "MODEL_WEIGHTS": str(weights),
                "NUMBER_OF_PREDICTIONS": str(_PER_CLIP),
                **({} if loaded.name == "yolov3-tiny" else {"DETECTION_THRESHOLD": _UNREACHED}),
            }
            for in_flight in _IN_FLIGHT:
                variables["RECORDINGS_IN_FLIGHT"] = str(in_flight)
                rate = _recordings(broker, variables, clips, folder / f"{name}-{in_flight}")
                workers.append([name, str(batch), str(in_flight), f"{rate:.1f}", f"{_PER_CLIP * rate:.0f}"])
    return (
        f"GPU: {_described(heard.gpu_in_use)}.\n\n"
        "From uint8 frames in memory to decoded boxes, fp16; yolov3-tiny has its trained weights, yolov3 random ones. "
        "Latency: one caller's wait, copies included, median. Frames/s: three callers, with copies; without them, what "
        "the GPU alone computes. Beside published: frames/s without copies, as a part of what is published for this "
        "GPU (608: of what that makes one expect). Of peak: of the GPU's dense fp16 peak. Copies hidden: how much of "
        "the time that a lone batch takes beyond its computation goes once batches follow each other in two slots. "
        f"Engines are tuned for batches of {max(BATCHES)}: one that is tuned for a smaller batch may be faster there."
        f"\n\n{table(_HEADER, rows)}\n\n"
        f"A whole worker, with {_PER_CLIP} frames of each recording ({_CLIP_S:g} s, H.264), beside a file-backed Vault "
        f"and an embedded broker, for {_WORKER_S:g} s; the CPU cores that decode are this machine's, shared by all.\n\n"
        f"{table(['network', 'batch up to', 'recordings in flight', 'recordings/s', 'frames/s'], workers)}"
    )


def _rows(name: str, loaded: Model, measured: Sequence[Measured], gpu: str) -> Iterator[list[str]]:
    known = reference(gpu)
    published = known.frames.get(loaded.width) if known and loaded.name == "yolov3" else None
    billions = sum(float(number) for number in re.findall(r"([\d.]+) BFLOPs", loaded.table))
    for one in measured:
        assert one.compute is not None  # this is a GPU
        yield [
            name,
            str(one.batch),
            f"{one.latency * 1000:.2f}",
            f"{one.throughput:.0f}",
            f"{one.compute:.0f}",
            f"{one.compute / published:.2f}" if published else "-",
            f"{100 * one.compute * billions / (1000 * known.peak):.0f}" if known else "-",
            f"{100 * hidden(one):.0f}",
        ]


def reference(gpu: str) -> Reference | None:
    """What is known of a GPU by its name, such as `Tesla T4` or `NVIDIA H100 80GB HBM3`; None for parts of one."""
    return next((known for name, known in REFERENCES.items() if re.search(rf"\b{name}\b(?!.* MIG)", gpu)), None)


def hidden(one: Measured) -> float:
    """The part of a lone batch's time beyond its computation that doesn't show when batches follow each other."""
    assert one.compute is not None
    alone, computing, following = one.latency, one.batch / one.compute, one.batch / one.throughput
    return min(1.0, max(0.0, (alone - following) / (alone - computing))) if alone > computing else 1.0


def _recordings(broker: EmbeddedBroker, variables: dict[str, str], clips: Sequence[bytes], folder: Path) -> float:
    """Results a second that a worker publishes, from its first on."""
    folder.mkdir()
    with site(broker, folder) as here, Worker({**here.variables, **variables}, folder / "log") as worker:
        worker.wait_ready(_START_S)
        keys = [here.store(f"{number}.mp4", clip) for number, clip in enumerate(clips)]
        stop = threading.Event()
        sent = count = 0
        begin = time.perf_counter()
        first = last = 0.0
        for body in reader.follow({"bootstrap.servers": broker.address}, here.variables["QUEUE_TARGET"], stop):
            if sent - count < _AHEAD:
                here.announce(*(event(keys[number % len(keys)]) for number in range(_AHEAD)))
                sent += _AHEAD
            now = time.perf_counter()
            if body is not None:
                assert json.loads(body)["vaultml"]["engine"] == "tensorrt"
                count += 1
                first, last = first or now, now
            if worker.returncode is not None or now - (first or begin) > (_WORKER_S if count > 1 else _START_S):
                stop.set()
        if count < 2:
            raise InvalidInput(f"the worker published {count} results; its log: {worker.log_text()[-2000:]}")
    return (count - 1) / (last - first)


class _Heard(Silent):
    """Remembers the GPU."""

    gpu_in_use: Gpu

    def gpu(self, gpu: Gpu) -> None:
        """See Observer."""
        self.gpu_in_use = gpu


def _described(gpu: Gpu) -> str:
    capability = ".".join(map(str, gpu.compute_capability))
    return (
        f"{gpu.name} ({gpu.memory / (1 << 30):.0f} GiB, compute capability {capability}), driver "
        f"{gpu.driver or 'unknown'}, {gpu.runtime}"
    )
