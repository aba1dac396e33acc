"""Log lines and metrics of a running worker, from what its parts report."""

from typing import Any

import structlog

from vaultml_worker.engines import Gpu
from vaultml_worker.failures import Cause, Failure
from vaultml_worker.observability import Health, Metrics, masked_line, masked_result
from vaultml_worker.pipeline import Processed
from vaultml_worker.queues import Ended, Ending, Message, Queue
from vaultml_worker.settings import Settings

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class Reports:
    """See Monitor; log lines and metrics of recordings follow the queue's report of their final outcome."""

    def __init__(self, settings: Settings, health: Health, metrics: Metrics) -> None:
        self._names = settings.names
        self._json = settings.log_format == "json"
        self._health = health
        self._metrics = metrics

    def trouble(self, sentence: str) -> None:
        """See Monitor."""
        log.warning(sentence)

    def bug(self, error: Exception) -> None:
        """See Monitor."""
        log.error("unforeseen error in one recording, which becomes a dead letter", exc_info=error)

    def tick(self, queue: Queue, in_flight: int) -> None:
        """See Monitor."""
        self._health.tick(queue_works=queue.healthy)
        self._metrics.in_flight.set(in_flight)
        if not self._health.ready and queue.joined:
            self._health.ready = True
            log.info("ready: waiting for events", queue=self._names.source)

    def retrying(self, failure: Failure, wait: float) -> None:
        """Report that a recording is held by a transient failure, and retried after `wait` seconds."""
        self._metrics.retried(failure.cause)
        log.warning(f"{failure.message}: {failure.cause.advice}; retrying in {wait:.1f} s", cause=str(failure.cause))

    def held(self, cause: Cause, change: int) -> None:
        """Report that one more (+1) or one less (-1) recording is held by this cause."""
        self._metrics.held(cause, change)

    def ended(self, ending: Ending, processed: Processed | None) -> None:
        """See Monitor."""
        failure = ending.failure
        self._metrics.ended(ending.how, failure.cause if failure is not None else None)
        if ending.how is Ended.PUBLISHED and processed is not None:
            self._metrics.processed(processed.detections, processed.timings)
        if ending.how not in (Ended.PUBLISHED, Ended.DEAD_LETTERED):
            log.debug(f"message {ending.how}", **ending.message.origin)
        elif self._json:
            _log_record(ending, processed)
        else:
            self._log_lines(ending, processed)

    def _log_lines(self, ending: Ending, processed: Processed | None) -> None:
        """Log hub-ml's lines for one recording, in one piece though several are in work, and a summary line of ours."""
        event, result = (processed.event, processed.result) if processed is not None else (None, None)
        lines = ["checking.."]
        if event is not None:
            lines.append(masked_line(event.document))
        if ending.failure is not None:
            lines += [f"{_where(ending.message)}: {ending.failure}", f"Sending to {self._names.dead_letters}"]
            log.warning("recording", plain="\n".join([*lines, "next.."]))
            return
        if result is None or event is None:
            return
        lines.append(masked_result(result))
        if self._names.target:
            lines.append(f"Sending to {self._names.target}")
        lines += [f"{event.key}: {summary(result['vaultml'])}", "next.."]
        log.info("recording", plain="\n".join(lines))


class EngineLog:
    """Log and metrics of what an engine reports."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._logged = -1

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
        if tenths != self._logged and 0 < tenths < 10:
            log.info(f"engine {tenths * 10} % built")
        self._logged = tenths

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
    """Return one readable line on a result's `vaultml` object."""
    objects, frames = vaultml["objects"], vaultml["frames"]
    kinds = ", ".join(f"{label} {count}" for label, count in objects["by_label"].items()) or "nothing"
    flags = "".join(f", {flag}" for flag in ("truncated", "corrupt") if vaultml[flag])
    flags += ", times by frame order" if vaultml.get("timing") == "frame-order" else ""
    total = sum(vaultml["timings"].values())
    return (
        f"{kinds}; {objects['moving']} of {objects['total']} moving; "
        f"{frames['decoded']} of {frames['asked']} frames{flags}; {total:.0f} ms"
    )


def _where(message: Message) -> str:
    return ", ".join(f"{name} {value}" for name, value in message.origin.items())


def _log_record(ending: Ending, processed: Processed | None) -> None:
    event, result = (processed.event, processed.result) if processed is not None else (None, None)
    fields: dict[str, Any] = {"key": event.key, "camera": event.camera} if event else {}
    if (failure := ending.failure) is not None:
        log.warning(
            "recording",
            outcome="dead-letter",
            cause=str(failure.cause),
            error=failure.message,
            **ending.message.origin,
            **fields,
        )
    elif result is not None:
        vaultml = {name: result["vaultml"][name] for name in ("objects", "timings", "frames")}
        log.info("recording", outcome="published", **fields, **vaultml)
