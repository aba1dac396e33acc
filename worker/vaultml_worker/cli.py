"""The command `vaultml`."""

import enum
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from vaultml_worker import __version__, failures, settings
from vaultml_worker.failures import Failure
from vaultml_worker.records import EngineError, InvalidInput

cli = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Turns stored camera recordings into detections.",
)
model_cli = typer.Typer(no_args_is_help=True, help="Models: look at, export, fetch, build, measure.")
dev_cli = typer.Typer(no_args_is_help=True, help="Stand-ins for development: Vault, broker, Agent, and the demo.")
cli.add_typer(model_cli, name="model")
cli.add_typer(dev_cli, name="dev")


_STYLES = {"ok": "green", "info": "dim", "warning": "yellow", "wrong": "bold red"}
"""How the states of findings look on a terminal."""


class PrecisionChoice(enum.StrEnum):
    """Precision of an exported network."""

    FP32 = "fp32"
    FP16 = "fp16"


def main() -> None:
    """Run the command; what the user can mend is one line and exit code 2, an engine that can't start exit code 1."""
    try:
        cli()
    except (InvalidInput, Failure) as error:
        _fail(str(error))
    except EngineError as error:
        _fail(str(error), code=1)


def _fail(message: str, code: int = 2) -> NoReturn:
    typer.echo(f"vaultml: {message}", err=True)
    sys.exit(code)


@cli.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(f"vaultml {__version__}")
        raise typer.Exit


def _variables() -> str:
    lines = ["It is set up by environment variables:", ""]
    for name, default, secret, meaning in settings.variables():
        shown = "required" if default is None else f"default {default}" if default else "empty by default"
        lines.append(f"{name} ({shown}{', secret' if secret else ''}): {meaning}\n")
    return "\n\n".join(lines)


@cli.command(epilog=_variables())
def worker() -> None:
    """Consume events, look at their recordings, publish results, until SIGTERM."""
    from vaultml_worker import app

    app.run(settings.load())


@cli.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of lines.")] = False,
) -> None:
    """Say whether a worker with this environment would work on this machine; exit code 1 when it would not.

    Looks at settings, GPU, model, decoders, queue and Vault, for at most 20 seconds; takes no message, fetches nothing.
    """
    from dataclasses import asdict

    from vaultml_worker import doctor as doctor_
    from vaultml_worker.records import State

    console = Console(highlight=False, soft_wrap=True)
    findings = []
    for finding in doctor_.examine():
        findings.append(finding)
        if not as_json:
            sentence = f"{finding.found}; {finding.advice}" if finding.advice else finding.found
            line = Text.assemble((f"{finding.state:<8}", _STYLES[finding.state]), f"{finding.name:<13}", sentence)
            console.print(line)
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    if any(finding.state is State.WRONG for finding in findings):
        raise typer.Exit(1)


@cli.command()
def detect(
    files: Annotated[list[Path], typer.Argument(help="Videos and pictures.", metavar="FILE…")],
    out: Annotated[Path, typer.Option(help="Folder for the annotated files and the JSON.")],
    model: Annotated[str | None, typer.Option(help="Darknet .cfg or .onnx, or yolov3; default: YOLOv3-tiny.")] = None,
    weights: Annotated[Path | None, typer.Option(help="Darknet weights.")] = None,
    names: Annotated[Path | None, typer.Option(help="Labels, one a line.")] = None,
    frames: Annotated[str, typer.Option(help="Frames to look at, spread evenly; or 'all'.")] = "5",
    threshold: Annotated[float, typer.Option(help="Least probability, between 0 and 1.")] = 0.5,
    move_distance: Annotated[float, typer.Option(min=0, help="Pixels to travel to count as moving.")] = 50,
) -> None:
    """Detect and track objects in files: writes DIR/<stem>.json and an annotated DIR/<stem>.mp4 or .jpg."""
    from vaultml_worker import detect as detect_

    if frames != "all" and not (frames.isascii() and frames.isdecimal() and 1 <= int(frames) <= 1000):
        raise InvalidInput(f"--frames {frames}: give a number from 1 to 1000, or all")
    if not 0 < threshold < 1:
        raise InvalidInput(f"--threshold {threshold}: must lie between 0 and 1")
    targets = detect_.outputs(files, out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInput(f"--out {out}: can't be made: {error.strerror}") from None
    bad = 0
    count = 5 if frames == "all" else int(frames)
    with _detecting(model, weights, names, count, threshold, move_distance) as parts, _progress() as progress:
        for path in files:
            task = progress.add_task(path.name, total=1.0)
            try:
                vaultml = detect_.run(
                    path,
                    targets[path],
                    *parts,
                    every_frame=frames == "all",
                    progress=lambda done, task=task: progress.update(task, completed=done),  # type: ignore[misc]
                )
                typer.echo(f"{path}: {_summary(vaultml)}")
            except (Failure, InvalidInput, OSError) as error:
                bad += 1
                typer.echo(f"vaultml: {path}: {error}", err=True)
            progress.remove_task(task)
    if bad:
        _fail(f"{bad} of {len(files)} files could not be processed")


def _summary(vaultml: dict[str, Any]) -> str:
    from vaultml_worker import reports

    return reports.summary(vaultml)


@contextmanager
def _detecting(
    given: str | None, weights: Path | None, names: Path | None, frames: int, threshold: float, move_distance: float
) -> Iterator[tuple[Any, Any]]:
    """A detector and decoders, given back at the end."""
    from vaultml_common.machine import cpus
    from vaultml_worker import inference
    from vaultml_worker.decoders import Decoders
    from vaultml_worker.engines import Options
    from vaultml_worker.pipeline import DetectionOptions, Detector

    choice = inference.ModelChoice(given, weights, names)
    with (
        inference.ready(choice, options=Options(observer=_Warnings())) as ready,
        closing(Decoders(processes=cpus(), seconds=600, memory=4 << 30)) as decoders,
    ):
        yield Detector(ready.engine, ready.model, DetectionOptions(frames, threshold, (), move_distance)), decoders


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )


@model_cli.command("table")
def model_table(cfg: Annotated[Path, typer.Argument(help="Darknet .cfg")]) -> None:
    """Print the layer table exactly as Darknet does."""
    from vaultml_worker import darknet

    sys.stdout.write(darknet.layer_table(darknet.read_cfg(cfg)))


@model_cli.command("export")
def model_export(
    cfg: Annotated[Path, typer.Argument(help="Darknet .cfg")],
    weights: Annotated[Path, typer.Argument(help="Darknet weights")],
    output: Annotated[Path, typer.Option("-o", "--output", help="ONNX file to write.")],
    precision: Annotated[PrecisionChoice, typer.Option(help="Precision of the convolutions.")] = PrecisionChoice.FP32,
    names: Annotated[Path | None, typer.Option(help="Labels, one a line.")] = None,
) -> None:
    """Write a Darknet network as one ONNX graph with decoding and top-K in it."""
    from vaultml_worker import model

    loaded = model.load(cfg, weights, names, precision=precision.value)
    try:
        output.write_bytes(loaded.onnx)
    except OSError as error:
        raise InvalidInput(f"{output}: can't be written: {error.strerror}") from None


@model_cli.command("fetch")
def model_fetch(
    name: Annotated[str, typer.Argument(help="yolov3-tiny or yolov3")],
    weights: Annotated[
        Path | None, typer.Option(help="Folder that may hold NAME.weights: taken from there, if so, not fetched.")
    ] = None,
) -> None:
    """Fetch a published model, checked by digest, and print its folder."""
    from vaultml_worker import fetch

    with _progress() as progress:
        task = progress.add_task(name, total=None)
        folder = fetch.model(
            name, lambda done, total: progress.update(task, completed=done, total=total), weights=weights
        )
    typer.echo(str(folder))


@model_cli.command("build")
def model_build(
    model: Annotated[str | None, typer.Argument(help="Darknet .cfg or .onnx, or yolov3; default: YOLOv3-tiny.")] = None,
    weights: Annotated[Path | None, typer.Option(help="Darknet weights.")] = None,
    names: Annotated[Path | None, typer.Option(help="Labels, one a line.")] = None,
    precision: Annotated[PrecisionChoice, typer.Option(help="Of a Darknet network.")] = PrecisionChoice.FP16,
    batch: Annotated[int, typer.Option(min=1, max=256, help="Frames in a full batch, as ENGINE_BATCH.")] = 16,
    cache: Annotated[Path | None, typer.Option(help="Folder for the engine, as ENGINE_CACHE.")] = None,
    target: Annotated[
        str | None, typer.Option(help="Build for GPUs that are not here, e.g. sm89; TensorRT for RTX only.")
    ] = None,
) -> None:
    """Build the GPU engine of a model ahead of its first use; workers with the same cache find it."""
    from vaultml_worker import engines, inference
    from vaultml_worker.engines import tensorrt

    choice = inference.ModelChoice(model, weights, names, precision=precision.value, folder=cache)
    capability = _capability(target)
    if capability is None:
        engines.choose("tensorrt")  # what is missing is said before a model is fetched
    with _progress() as progress:
        loaded = inference.load(choice).model
        options = engines.Options(choice.engine_cache, batch, _Shown(progress, loaded.name))
        if capability is not None:
            built = tensorrt.build_ahead(loaded, options, capability)
        else:
            with closing(tensorrt.TensorRtEngine(loaded, options)) as engine:
                built = engine.built
    if built.path is None:
        raise InvalidInput(f"--cache {choice.engine_cache}: the engine could not be written there")
    took = f"{built.seconds:.1f} s" if built.seconds else "was there already"
    typer.echo(f"{built.path}: {built.size / (1 << 20):.1f} MiB, {took}")


@model_cli.command("bench")
def model_bench(
    model: Annotated[str | None, typer.Argument(help="Darknet .cfg or .onnx, or yolov3; default: YOLOv3-tiny.")] = None,
    weights: Annotated[Path | None, typer.Option(help="Darknet weights.")] = None,
    names: Annotated[Path | None, typer.Option(help="Labels, one a line.")] = None,
    precision: Annotated[
        PrecisionChoice | None, typer.Option(help="Of a Darknet network; default: the engine's best.")
    ] = None,
    engine: Annotated[str, typer.Option(help="auto, tensorrt or onnxruntime, as ENGINE.")] = "auto",
    batches: Annotated[str, typer.Option(help="Batch sizes to measure.")] = "1,2,4,8,16",
    seconds: Annotated[float, typer.Option(min=0.1, help="Time for each measurement.")] = 2,
    cache: Annotated[Path | None, typer.Option(help="Folder for the engine, as ENGINE_CACHE.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a table.")] = False,
) -> None:
    """Measure a model on this machine: latency and frames per second by batch, with and without copies, memory."""
    from vaultml_worker import engines, inference
    from vaultml_worker.engines import bench
    from vaultml_worker.engines.tensorrt import TensorRtEngine

    if engine not in ("auto", "tensorrt", "onnxruntime"):
        raise InvalidInput(f"--engine {engine}: give auto, tensorrt or onnxruntime")
    try:
        sizes = sorted({int(size) for size in batches.split(",")})
    except ValueError:
        sizes = []
    if not sizes or sizes[0] < 1 or sizes[-1] > 256:
        raise InvalidInput(f"--batches {batches}: give numbers from 1 to 256, comma-separated")
    choice = inference.ModelChoice(
        model, weights, names, precision=precision.value if precision else None, folder=cache
    )
    with _progress() as progress:
        shown = _Shown(progress, model or "model")
        with inference.ready(choice, engine, engines.Options(max_batch=sizes[-1], observer=shown)) as ready:
            measured = bench.measure(ready.engine, ready.model, sizes, seconds)
            memory = ready.engine.memory() if isinstance(ready.engine, TensorRtEngine) else None
    _print_bench(ready.model.name, ready.engine.name, shown.runs_on, measured, memory, as_json=as_json)


def _print_bench(
    model: str, engine: str, gpu: Any, measured: Any, memory: tuple[int, int] | None, *, as_json: bool
) -> None:
    from dataclasses import asdict

    if as_json:
        document = {
            "model": model,
            "engine": engine,
            "gpu": asdict(gpu) if gpu is not None else None,
            "memory": {"engine": memory[0], "gpu": memory[1]} if memory else None,
            "batches": [asdict(one) for one in measured],
        }
        typer.echo(json.dumps(document, indent=2))
        return
    typer.echo(f"{model}, {engine}" + (f", {gpu.name} ({gpu.runtime})" if gpu is not None else ""))
    typer.echo(f"{'batch':>5} {'latency ms':>11} {'frames/s':>9} {'without copies':>15}")
    for one in measured:
        alone = f"{one.compute:15.1f}" if one.compute is not None else f"{'':>15}"
        typer.echo(f"{one.batch:5} {one.latency * 1000:11.1f} {one.throughput:9.1f} {alone}")
    if memory:
        typer.echo(
            f"GPU memory: {memory[0] >> 20} MiB for activations and buffers, {memory[1] >> 20} MiB in use in all"
        )


class _Warnings:
    """Shows an engine's warnings; see engines.Observer."""

    def gpu(self, gpu: Any) -> None:
        """Show nothing."""

    def building(self, part: float) -> None:
        """Show nothing."""

    def batch(self, frames: int) -> None:
        """Show nothing."""

    def info(self, message: str) -> None:
        """Show nothing."""

    def warning(self, message: str) -> None:
        """Show the warning."""
        typer.echo(f"vaultml: {message}", err=True)


class _Shown(_Warnings):
    """Shows what an engine reports, in a command."""

    def __init__(self, progress: Progress, name: str) -> None:
        self._progress = progress
        self._task = progress.add_task(name, total=1.0)
        self.runs_on: Any = None

    def gpu(self, gpu: Any) -> None:
        """Keep it for the table."""
        self.runs_on = gpu

    def building(self, part: float) -> None:
        """Show the progress."""
        self._progress.update(self._task, completed=part)


def _capability(target: str | None) -> tuple[int, int] | None:
    """sm89 → (8, 9)."""
    if target is None:
        return None
    number = target.lower().removeprefix("sm").replace("_", "")
    if not (number.isascii() and number.isdecimal() and 2 <= len(number) <= 3):
        raise InvalidInput(f"--target {target}: give a compute capability such as sm89")
    return int(number[:-1]), int(number[-1])


@cli.command()
def results(
    follow: Annotated[bool, typer.Option("--follow", help="Go on with what comes.")] = False,
    kafka: Annotated[str | None, typer.Option(help="Brokers; default: KAFKA_BROKER.")] = None,
    topic: Annotated[str | None, typer.Option(help="Result topic; default: QUEUE_TARGET.")] = None,
) -> None:
    """Print one readable line per result (committed ones only); the queue system's variables as for the worker."""
    from vaultml_worker.queues import SYSTEMS

    given = {"kafka_broker": kafka, "queue_target": topic}
    unused = {"queue_name": "unused"} | {k: v for each in SYSTEMS.values() for k, v in each.unused_by_readers.items()}
    loaded = settings.load(**unused, **{name: value for name, value in given.items() if value})
    if not loaded.queue_target:
        raise InvalidInput("QUEUE_TARGET: name the result topic, or give --topic")
    stop = _stop_on_signal()
    for body in loaded.system.follow(loaded.queue_target, loaded.queue, stop, not follow):
        if body is not None:
            typer.echo(_result_line(body))


def _result_line(body: bytes) -> str:
    from vaultml_worker import events

    try:
        event = events.parse(body)
        vaultml = event.document.get("vaultml")
        moment = datetime.fromtimestamp(event.timestamp or 0, UTC).strftime("%Y-%m-%d %H:%M:%S")
        seen = _summary(vaultml) if isinstance(vaultml, dict) else json.dumps(event.document.get("data"))
    except (Failure, KeyError, TypeError, AttributeError):
        return f"not a result: {len(body)} bytes"
    return f"{moment}  {event.camera or '-'}  {seen}  {event.key}"


@dev_cli.command("vault")
def dev_vault(
    directory: Annotated[Path, typer.Option("--dir", help="Folder that holds the recordings.")],
    host: Annotated[str, typer.Option()] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0: a free one.")] = 8081,
    access_key: Annotated[str, typer.Option()] = "dev-access",
    secret_key: Annotated[str, typer.Option()] = "dev-secret",
    provider: Annotated[str, typer.Option(help="The provider that the account is bound to.")] = "local",
    kafka: Annotated[str | None, typer.Option(help="Brokers to publish an event per stored recording to.")] = None,
    topic: Annotated[str, typer.Option(help="Topic of the events.")] = "ml-queue",
) -> None:
    """A file-backed Kerberos Vault, with and without /api."""
    from vaultml_worker.dev import vault

    account = vault.Account(access_key, secret_key, provider)
    publish = vault.publisher(kafka, topic) if kafka else None
    try:
        server = vault.VaultServer(vault.application(directory, account, publish), host, port)
    except OSError as error:
        raise InvalidInput(f"can't listen on {host}:{port}: {error.strerror}") from None
    typer.echo(f"Vault: {server.url}/api")
    _until_signal(server.close)


@dev_cli.command("broker")
def dev_broker(port: Annotated[int, typer.Option(help="0: a free one.")] = 0) -> None:
    """An embedded Kafka broker for this machine: nothing on disk, no login, no transactions."""
    from vaultml_worker.dev.broker import EmbeddedBroker

    try:
        broker = EmbeddedBroker(port)
    except OSError as error:
        raise InvalidInput(f"can't listen on port {port}: {error.strerror}") from None
    typer.echo(f"Broker: {broker.address}")
    _until_signal(broker.close)


@dev_cli.command("agent")
def dev_agent(
    vault: Annotated[str, typer.Option(help="Address of the Vault, with or without /api.")],
    footage: Annotated[Path, typer.Option(help="Video to cut recordings from.")],
    access_key: Annotated[str, typer.Option()] = "dev-access",
    secret_key: Annotated[str, typer.Option()] = "dev-secret",
    provider: Annotated[str, typer.Option()] = "local",
    seconds: Annotated[float, typer.Option(min=0.1, help="Length of a recording.")] = 8,
    cameras: Annotated[int, typer.Option(min=1, help="Cameras that take turns.")] = 1,
    rate: Annotated[float, typer.Option(min=0, help="Recordings a second; 0: at once.")] = 0,
    count: Annotated[
        int | None, typer.Option(min=1, help="Recordings; the footage begins again where it is too short.")
    ] = None,
) -> None:
    """Cut footage into recordings and upload them as a Kerberos Agent does."""
    from vaultml_worker.dev import agent
    from vaultml_worker.records import VaultAccess

    access = VaultAccess(vault, access_key, secret_key)
    stop = _stop_on_signal()
    keys = agent.upload(access, provider, footage, seconds=seconds, cameras=cameras, rate=rate, count=count, stop=stop)
    for key in keys:
        typer.echo(key)


@dev_cli.command("demo")
def dev_demo(out: Annotated[Path, typer.Option(help="Folder for what it makes.")] = Path("demo-output")) -> None:
    """Cameras, Vault, broker and autoscaled workers on this machine; FOOTAGE=file.mp4 uses your own footage."""
    from vaultml_worker.dev import demo

    if not demo.run(out, os.environ.get("FOOTAGE")):
        sys.exit(1)


@cli.command(hidden=True)
def variables() -> None:
    """Print docs/variables.md."""
    sys.stdout.write(settings.reference())


@cli.command(hidden=True)
def dead_letters() -> None:
    """Print docs/dead-letters.md."""
    sys.stdout.write(failures.reference())


def _stop_on_signal() -> threading.Event:
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


def _until_signal(close: Callable[[], None]) -> None:
    _stop_on_signal().wait()
    close()
