"""Where both autoscalers play the same trace: the cluster, the queue, and the workers' Deployment."""

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import psutil
from confluent_kafka import Consumer, Producer, TopicPartition

from benchmarks.simulator.traces import Trace
from testbed.kafka import Broker
from testbed.kubernetes import ApiError, Cluster, Image, Object, gpus
from testbed.kubernetes.control_plane import Flags
from testbed.operator import IMAGE
from vaultml_operator import api, manifests
from vaultml_operator.credentials import Credentials

SPACE, NAME, GROUP = "bench", "work", "workers"
POLL_S = 0.2
"""How often pods and replicas are looked at."""
_AFTER_S = 60.0
"""How long after the trace's end the last recording may take, or the last worker to leave."""
_QUIET = {"log_level": 0}


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A cluster with the trace's GPUs and a topic with its partitions, and nothing in it yet."""

    trace: Trace
    cluster: Cluster
    brokers: str
    topic: str


class Autoscaler(Protocol):
    """A contender."""

    label: str

    @property
    def flags(self) -> Flags:
        """What it needs of the control plane."""

    def scaling(self, scene: Scene) -> AbstractContextManager[None]:
        """Scale the scene's workers from entering on, when there are none."""

    def note(self, cluster: Cluster) -> str:
        """What it says of its last decision."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """What came of a trace; times in seconds since its first recording.

    - `waits`: per recording, from coming to done, shortest first; `waiting`: (time, recordings that wait).
    - `replicas`: (time, workers asked for), at each change; `gpu_seconds`: of pods that have a node and are not gone.
    - `busy`: share of the machine's CPU that was in use, by all that ran on it.
    """

    waits: tuple[float, ...]
    waiting: tuple[tuple[float, float], ...]
    replicas: tuple[tuple[float, int], ...]
    gpu_seconds: float
    busy: float

    @property
    def first_asked(self) -> float:
        """Until the first worker was asked for."""
        return next((time for time, count in self.replicas if count), float("inf"))

    def quantile(self, share: float) -> float:
        """A wait that so large a share of the recordings does not exceed."""
        return self.waits[min(int(len(self.waits) * share), len(self.waits) - 1)]


def play(trace: Trace, make: Callable[[Path], Autoscaler], broker: Broker, later: float = 0.0) -> Run:
    """Have an autoscaler live through a trace, which starts so many seconds `later`, on a cluster of its own.

    `make` may put files into the folder that it is given. All logs are kept when the run fails.
    """
    with tempfile.TemporaryDirectory(prefix="vaultml-bench-") as folder:
        autoscaler = make(Path(folder))
        topic = f"queue-{time.time_ns()}"
        broker.create_topic(topic, trace.partitions)
        _commit(broker.plaintext, topic, trace.partitions)
        with Cluster(images={IMAGE.partition(":")[0]: _image(trace)}, flags=autoscaler.flags) as cluster:
            cluster.kubectl("create", "namespace", SPACE)
            cluster.node("gpus", **gpus.whole(trace.gpus))
            scene = Scene(trace=trace, cluster=cluster, brokers=broker.plaintext, topic=topic)
            with autoscaler.scaling(scene):
                return _Record(scene, autoscaler).run(later)


def pipeline(scene: Scene, **autoscaling: Any) -> Object:
    """The resource that both start from: ours as it is, for KEDA what our operator makes of it."""
    queue = {"name": scene.topic, "kafka": {"brokers": [scene.brokers], "group": GROUP}}
    return {
        "apiVersion": api.API_VERSION,
        "kind": api.KIND,
        "metadata": {"name": NAME, "namespace": SPACE},
        "spec": {"queue": queue, "autoscaling": autoscaling},
    }


def deployment(scene: Scene) -> list[Object]:
    """The same workers, to the last probe, that our operator runs, for someone else to scale."""
    body = pipeline(scene)
    body["metadata"] |= {"uid": "none", "generation": 1}
    found = manifests.render(api.Pipeline.from_body(body), Credentials(), "", IMAGE)
    for each in found:
        del each["metadata"]["ownerReferences"]
    next(each for each in found if each["kind"] == "Deployment")["spec"]["replicas"] = 0
    return found


def replicas(cluster: Cluster) -> int:
    """How many workers the Deployment asks for; 0 while there is none."""
    try:
        found = cluster.get(f"/apis/apps/v1/namespaces/{SPACE}/deployments/{NAME}")
    except ApiError as error:
        if error.status == 404:
            return 0
        raise
    return int(found["spec"]["replicas"])


class _Record:
    """Sends the recordings of a trace and watches what becomes of them."""

    def __init__(self, scene: Scene, autoscaler: Autoscaler) -> None:
        self._scene = scene
        self._autoscaler = autoscaler
        self._arrivals = sorted(scene.trace.arrivals[0])
        self._replicas: list[tuple[float, int]] = []
        self._gpu_seconds = 0.0
        self._note = ""

    def run(self, later: float) -> Run:
        """Play it to its end: all done, and no worker left. Raises TimeoutError when that takes too long."""
        cluster, left = self._scene.cluster, list(self._arrivals)
        producer = Producer({**_QUIET, "bootstrap.servers": self._scene.brokers})
        start = time.monotonic() + later + left[0][0]  # of the first recording
        wall = time.time() - time.monotonic()
        psutil.cpu_percent()
        last, pods = time.monotonic(), 0
        while True:
            now = time.monotonic() - start
            while left and left[0][0] - self._arrivals[0][0] <= now:
                producer.produce(self._scene.topic, b"{}", partition=left.pop(0)[1])
            if producer.flush(10):
                raise TimeoutError("the broker does not take the recordings")
            self._gpu_seconds += pods * (time.monotonic() - last)
            last, pods = time.monotonic(), self._pods()
            wanted = replicas(cluster)
            self._tell(last - start, wanted, pods)
            if not left and wanted == pods == 0 and len(self._done()) == len(self._arrivals):
                break
            if now > self._scene.trace.length + _AFTER_S:
                raise TimeoutError(f"{len(self._done())} of {len(self._arrivals)} recordings done, {pods} workers left")
            time.sleep(POLL_S)
        done = list(self._done().values())
        return Run(
            waits=tuple(sorted(finished - came for came, finished in done)),
            waiting=tuple(_waiting(done, wall + start)),
            replicas=tuple(self._replicas),
            gpu_seconds=self._gpu_seconds,
            busy=psutil.cpu_percent() / 100,
        )

    def _tell(self, now: float, wanted: int, pods: int) -> None:
        if not self._replicas or self._replicas[-1][1] != wanted:
            self._replicas.append((now, wanted))
        note = f"{wanted} wanted, {pods} with a GPU; {self._autoscaler.note(self._scene.cluster)}"
        if note != self._note:
            self._note = note
            print(f"{now:6.1f} s {self._autoscaler.label}: {note}", file=sys.stderr, flush=True)

    def _pods(self) -> int:
        """How many hold a GPU: on a node, and neither ended nor gone."""
        found = self._scene.cluster.get(f"/api/v1/namespaces/{SPACE}/pods?resourceVersion=0")["items"]
        ended = ("Succeeded", "Failed")
        return sum(bool(each["spec"].get("nodeName")) and each["status"].get("phase") not in ended for each in found)

    def _done(self) -> Mapping[tuple[int, int], tuple[float, float]]:
        """When each recording came and was first done, by partition and offset: what the workers wrote."""
        found: dict[tuple[int, int], tuple[float, float]] = {}
        for path in self._scene.cluster.pod_logs.glob(f"{SPACE}/*/worker/*.log"):
            for line in path.read_text().splitlines():
                if line.startswith("[") and line.endswith("]"):
                    partition, offset, came, done = json.loads(line)
                    before = found.get((partition, offset), (came, done))
                    found[partition, offset] = came, min(done, before[1])
        return found


def _waiting(done: list[tuple[float, float]], start: float) -> Iterator[tuple[float, float]]:
    changes = [(came - start, 1) for came, _ in done] + [(finished - start, -1) for _, finished in done]
    count = 0
    for moment, change in sorted(changes):
        yield moment, count
        count += change
        yield moment, count


def _image(trace: Trace) -> Image:
    env = {"START_S": str(trace.startup), "RECORDING_S": str(trace.seconds), "PYTHONDONTWRITEBYTECODE": "1"}
    folders = (str(Path(__file__).parents[2]), sys.prefix)
    return Image(entrypoint=(sys.executable, str(Path(__file__).with_name("worker.py"))), env=env, files=folders)


def _commit(brokers: str, topic: str, partitions: int) -> None:
    """A group that has worked here before: without a commit, each autoscaler guesses in its own way."""
    consumer = Consumer({**_QUIET, "bootstrap.servers": brokers, "group.id": GROUP, "enable.auto.commit": False})
    try:
        consumer.commit(offsets=[TopicPartition(topic, number, 0) for number in range(partitions)], asynchronous=False)
    finally:
        consumer.close()
