"""The worker: puts the parts together, runs them until SIGTERM, takes them down."""

import signal
import threading
from contextlib import ExitStack, closing
from types import FrameType

import structlog

from vaultml_common.machine import cpus
from vaultml_worker import __version__, inference, self_test, vault_check
from vaultml_worker.decoders import Decoders
from vaultml_worker.engines import EngineStopped, Options
from vaultml_worker.inference import ModelChoice
from vaultml_worker.observability import Health, HttpServer, Metrics, configure_log
from vaultml_worker.pipeline import DetectionOptions, Detector, Pipeline
from vaultml_worker.records import InvalidInput, Model, State
from vaultml_worker.reports import EngineLog, Reports
from vaultml_worker.retries import Retries
from vaultml_worker.settings import Settings
from vaultml_worker.transport import Transport
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
        work(settings, stop)
    except EngineStopped:
        log.info("stopped: the engine that was being built is given up")
        return
    log.info("stopped: everything in work was finished")


def work(settings: Settings, stop: threading.Event) -> None:
    """Assemble a worker and run it until `stop` is set; the parts end in reverse order."""
    health, metrics = Health(), Metrics()
    reports = Reports(settings, health, metrics)
    with ExitStack() as parts:
        http = parts.enter_context(closing(_listen(settings, health, metrics)))
        log.info("vaultml worker starts", version=__version__, port=http.port)
        transport = parts.enter_context(closing(settings.transport()))
        _check_vault(settings, transport)
        ready = parts.enter_context(inference.ready(*_inference(settings, metrics, stop)))
        _log_model(settings, ready.model, ready.cpu_reason)
        health.busy_seconds = lambda: ready.engine.busy_seconds
        retries = Retries(stop, on_retry=reports.retrying, on_held=reports.held)
        decoders = parts.enter_context(closing(_decoders(settings, retries)))
        ready.engine.warm_up()
        _warm_up(decoders, settings)
        vault = _vault(settings, transport, retries)
        pipeline = Pipeline(
            lambda observer: settings.system.connect(settings.names, settings.queue, observer),
            vault,
            decoders,
            Detector(ready.engine, ready.model, detection_options(settings)),
            in_flight=settings.recordings_in_flight,
            monitor=reports,
        )
        pipeline.run(stop)


def model_choice(settings: Settings) -> ModelChoice:
    """Return the model that the settings ask for."""
    return ModelChoice(
        settings.model,
        settings.model_weights,
        settings.model_names,
        settings.model_sha256,
        None if settings.model_precision == "auto" else settings.model_precision,
        settings.engine_cache,
        settings.detection_classes,
    )


def detection_options(settings: Settings) -> DetectionOptions:
    """Return how the settings want recordings to be processed."""
    return DetectionOptions(
        settings.number_of_predictions,
        settings.detection_threshold,
        settings.detection_classes,
        settings.move_distance,
    )


def _listen(settings: Settings, health: Health, metrics: Metrics) -> HttpServer:
    try:
        return HttpServer(settings.http_host, settings.http_port, health, metrics)
    except OSError as error:
        raise InvalidInput(
            f"HTTP_HOST, HTTP_PORT: can't listen on {settings.http_host} port {settings.http_port} ({error.strerror})"
        ) from None


def _inference(settings: Settings, metrics: Metrics, stop: threading.Event) -> tuple[ModelChoice, str, Options]:
    options = Options(None, settings.engine_batch, EngineLog(metrics), stop.is_set)
    return model_choice(settings), settings.engine, options


def _decoders(settings: Settings, retries: Retries) -> Decoders:
    return Decoders(
        processes=cpus() + 1,  # while one hands over its frames, another one works
        seconds=settings.decoder_seconds,
        memory=settings.decoder_bytes,
        limits=Limits(settings.recording_max_pixels, settings.recording_max_frames),
        retries=retries,
    )


def _warm_up(decoders: Decoders, settings: Settings) -> None:
    """Start the decoders, and make sure that their limits leave room for a recording."""
    decoders.warm_up()
    failure = self_test.decode(decoders, settings.recording_max_pixels)
    if failure is not None:
        raise InvalidInput(f"{self_test.LIMITS}: a clip can't be decoded: {failure.message}; raise the limit")


def _vault(settings: Settings, transport: Transport, retries: Retries) -> Vault:
    return Vault(
        settings.vault,
        download=settings.vault_download,
        max_bytes=settings.recording_max_bytes,
        http=transport,
        retries=retries,
    )


def _log_model(settings: Settings, model: Model, cpu_reason: str | None) -> None:
    if settings.log_format == "console" and model.table:
        log.info("layers", plain=model.table.rstrip("\n"))
    layers = model.table.count("\n") - 1 if model.table else None
    log.info("model loaded", name=model.name, sha256=model.sha256, layers=layers)
    if not settings.queue_target:
        log.warning("QUEUE_TARGET is empty: results reach only this log and the metrics")
    if cpu_reason is not None:
        log.info(f"the network runs on the CPU: {cpu_reason}")


def _check_vault(settings: Settings, transport: Transport) -> None:
    """Ask Vault once before the first message is taken; what is wrong with it holds the queue, not the worker."""
    if settings.vault is None:
        log.info("no Vault is set: every event must bring its own")
        return
    finding = vault_check.check(settings.vault, transport)
    if finding.state is State.OK:
        log.info(f"Vault: {finding.found}")
    else:
        log.warning(f"Vault: {finding.found}: {finding.advice}; messages are held until it works")
