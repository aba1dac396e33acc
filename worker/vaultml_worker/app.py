"""The worker: puts the parts together, runs them until SIGTERM, takes them down."""

import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import structlog

from vaultml_worker import __version__, engines, fetch, model, onnx_graph, queues
from vaultml_worker.decoders import Decoders
from vaultml_worker.engines import Engine, EngineStopped, Gpu
from vaultml_worker.engines.onnx import cpus
from vaultml_worker.observability import Health, HttpServer, Metrics, configure_log, masked_line
from vaultml_worker.pipeline import Detector, Options, Outcome, Pipeline
from vaultml_worker.records import InvalidInput, Model, RetryableFailure
from vaultml_worker.settings import Settings
from vaultml_worker.vault import Vault
from vaultml_worker.video import Limits

log: structlog.stdlib.BoundLogger = structlog.get_logger()


def run(settings: Settings) -> None:
    """Work until SIGTERM or SIGINT; what is in work then is finished first.

    Raises InvalidInput for settings or models that can't work, EngineError when the engine can't start, EngineFailure
    when it fails later.
    """
    configure_log(settings.log_format, settings.log_level, settings.secrets)
    stop = threading.Event()

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    try:
        Worker(settings, stop).run()
    except EngineStopped:
        log.info("stopped: the engine that was being built is given up")
        return
    log.info("stopped: everything in work was finished")


class Worker:
    """All parts of one worker, and what it says of them."""

    def __init__(self, settings: Settings, stop: threading.Event) -> None:
        self._settings = settings
        self._stop = stop
        self._health = Health()
        self._metrics = Metrics()

    def run(self) -> None:
        """Load, warm up, join the queue, work."""
        settings = self._settings
        try:
            http = HttpServer(settings.http_host, settings.http_port, self._health, self._metrics)
        except OSError as error:
            raise InvalidInput(
                f"HTTP_HOST, HTTP_PORT: can't listen on {settings.http_host}:{settings.http_port} ({error.strerror})"
            ) from None
        try:
            log.info("vaultml worker starts", version=__version__, port=http.port)
            self._work()
        finally:
            http.close()

    def _work(self) -> None:
        settings = self._settings
        # What is fetched is kept with the engines: in a pod, the image's own cache can't be written to.
        path = fetch.locate(settings.model, settings.model_sha256, settings.engine_cache) if settings.model else None
        engine_name, no_gpu = engines.choose(settings.engine)
        precision = self._precision(engine_name, path)
        loaded = model.load(path, settings.model_weights, settings.model_names, precision, settings.model_sha256)
        for warning in model.warnings(loaded, path):
            log.warning(warning)
        model.check_labels(loaded, settings.detection_classes)
        self._say_model(loaded.table, loaded.name, loaded.sha256)
        if not settings.queue_target:
            log.warning("QUEUE_TARGET is empty: results reach only this log and the metrics")
        if no_gpu is not None:
            log.info(f"the network runs on the CPU: {no_gpu}")
        cache = settings.engine_cache or fetch.cache() / "engines"
        options = engines.Options(cache, settings.engine_batch, EngineLog(self._metrics), self._stop.is_set)
        engine = engines.create(engine_name, loaded, options)
        try:
            self._look(engine, loaded)
        finally:
            engine.close()

    def _precision(self, engine: str, path: Path | None) -> onnx_graph.Precision | None:
        """What the user asked for, else what suits the engine; an .onnx has its own."""
        asked = self._settings.model_precision
        if asked != "auto":
            return asked
        return engines.precision(engine) if model.has_precision(path) else None

    def _look(self, engine: Engine, loaded: Model) -> None:
        """Warm up, join the queue, work until the end."""
        settings = self._settings
        decoders = Decoders(
            processes=cpus(),
            seconds=settings.decoder_seconds,
            memory=settings.decoder_bytes,
            limits=Limits(settings.recording_max_pixels, settings.recording_max_frames),
        )
        vault = Vault(
            settings.vault,
            download=settings.vault_download,
            max_bytes=settings.recording_max_bytes,
            connections=settings.recordings_in_flight,
            stop=self._stop,
            on_retry=self._on_retry,
        )
        try:
            engine.warm_up()
            decoders.warm_up()
            self._health.busy_seconds = lambda: engine.busy_seconds
            queue = queues.connect(settings, self._on_trouble)
            self._queue = queue
            options = Options(
                settings.number_of_predictions,
                settings.detection_threshold,
                settings.detection_classes,
                settings.move_distance,
            )
            Pipeline(
                queue,
                vault,
                decoders,
                Detector(engine, loaded, options),
                in_flight=settings.recordings_in_flight,
                on_outcome=self._on_outcome,
                on_bug=self._on_bug,
                on_tick=self._on_tick,
            ).run(self._stop)
        finally:
            vault.close()
            decoders.close()

    def _say_model(self, table: str, name: str, sha256: str) -> None:
        if self._settings.log_format == "console" and table:
            log.info("layers", plain=table.rstrip("\n"))
        log.info("model loaded", name=name, sha256=sha256, layers=table.count("\n") - 1 if table else None)

    def _on_tick(self, in_work: int) -> None:
        self._health.tick()
        self._metrics.in_flight.set(in_work)
        if not self._health.ready and self._queue.joined:
            self._health.ready = True
            log.info("ready: waiting for events", queue=self._settings.queue_name)

    def _on_trouble(self, trouble: str) -> None:
        log.warning(trouble)

    def _on_bug(self, error: Exception) -> None:
        log.error("unforeseen error in one recording, which becomes a dead letter", exc_info=error)

    def _on_retry(self, failure: RetryableFailure, wait: float) -> None:
        self._metrics.retried(failure.cause)
        log.warning(f"{failure.message}; trying again in {wait:.1f} s", cause=str(failure.cause))

    def _on_outcome(self, outcome: Outcome) -> None:
        if outcome.failure is not None:
            self._metrics.dead_letter(outcome.failure.cause)
        elif outcome.seen is not None:
            self._metrics.published(outcome.seen.detections, outcome.timings)
        if self._settings.log_format == "json":
            self._log_record(outcome)
        else:
            self._log_lines(outcome)

    def _log_record(self, outcome: Outcome) -> None:
        event, failure = outcome.event, outcome.failure
        fields: dict[str, Any] = {"key": event.key, "camera": event.camera} if event else {}
        if failure is not None:
            log.warning(
                "recording",
                outcome="dead-letter",
                cause=str(failure.cause),
                error=failure.message,
                **outcome.message.origin,
                **fields,
            )
        elif outcome.result is not None:
            vaultml = outcome.result["vaultml"]
            log.info(
                "recording", outcome="published", **fields, **{k: vaultml[k] for k in ("objects", "timings", "frames")}
            )

    def _log_lines(self, outcome: Outcome) -> None:
        """hub-ml's lines for one recording, in one piece though several are in work, and a summary line of ours."""
        settings, event = self._settings, outcome.event
        lines = ["checking.."]
        if event is not None:
            lines.append(masked_line(event.document))
        if outcome.failure is not None:
            where = ", ".join(f"{name} {value}" for name, value in outcome.message.origin.items())
            lines += [f"{where}: {outcome.failure}", f"Sending to {settings.dead_letter_target}"]
            log.warning("recording", plain="\n".join([*lines, "next.."]))
            return
        if outcome.result is None or event is None:
            return
        lines.append(masked_line(outcome.result))
        if settings.queue_target:
            lines.append(f"Sending to {settings.queue_target}")
        lines += [f"{event.key}: {summary(outcome.result['vaultml'])}", "next.."]
        log.info("recording", plain="\n".join(lines))


class EngineLog:
    """Tells the log and the metrics what an engine does."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._told = -1

    def gpu(self, gpu: Gpu) -> None:
        """See engines.Observer."""
        self._metrics.gpu(gpu.name, gpu.uuid, gpu.driver, gpu.runtime, gpu.memory)
        log.info(
            "GPU",
            name=gpu.name,
            uuid=gpu.uuid,
            memory_mib=gpu.memory >> 20,
            driver=gpu.driver or None,
            compute_capability=".".join(map(str, gpu.compute_capability)),
            runtime=gpu.runtime,
        )

    def building(self, part: float) -> None:
        """See engines.Observer."""
        self._metrics.engine_built.set(part)
        tenths = int(part * 10)
        if tenths != self._told and 0 < tenths < 10:
            log.info(f"engine {tenths * 10} % built")
        self._told = tenths

    def batch(self, frames: int) -> None:
        """See engines.Observer."""
        self._metrics.engine_batch.set(frames)

    def info(self, message: str) -> None:
        """See engines.Observer."""
        log.info(message)

    def warning(self, message: str) -> None:
        """See engines.Observer."""
        log.warning(message)


def summary(vaultml: dict[str, Any]) -> str:
    """One readable line on a result's `vaultml` object."""
    objects, frames = vaultml["objects"], vaultml["frames"]
    kinds = ", ".join(f"{label} {count}" for label, count in objects["by_label"].items()) or "nothing"
    flags = "".join(f", {flag}" for flag in ("truncated", "corrupt") if vaultml[flag])
    total = sum(vaultml["timings"].values())
    return (
        f"{kinds}; {objects['moving']} of {objects['total']} moving; "
        f"{frames['decoded']} of {frames['asked']} frames{flags}; {total:.0f} ms"
    )
