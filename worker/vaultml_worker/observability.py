"""What people see of a worker: its log, its health and its metrics."""

import errno
import json
import logging
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from typing import Any, Literal
from wsgiref.simple_server import WSGIRequestHandler, make_server

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer

from vaultml_common.redaction import redacted
from vaultml_worker import events, results
from vaultml_worker.queues import Ended
from vaultml_worker.records import Detection

_STUCK_S = 60.0
_GPU_STUCK_S = 120.0


def configure_log(form: Literal["console", "json"], level: str, secrets: Sequence[str]) -> None:
    """Set up the log on stdout: `form` console for people, json for machines; `secrets` never appear in it."""

    def redact(_logger: Any, _name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        return {key: redacted(value, secrets) for key, value in event.items()}

    console = structlog.dev.ConsoleRenderer(
        colors=False, pad_event_to=0, exception_formatter=structlog.dev.plain_traceback
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            redact,
            _plain_or(console) if form == "console" else structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level)),
        logger_factory=structlog.PrintLoggerFactory(sys.stdout),
        cache_logger_on_first_use=False,
    )


def _plain_or(renderer: Callable[..., str]) -> Callable[..., str]:
    """hub-ml's lines stand alone, without time and level: a value under `plain` is printed as it is."""

    def render(logger: Any, name: str, event: MutableMapping[str, Any]) -> str:
        plain = event.get("plain")
        return str(plain) if plain is not None else renderer(logger, name, event)

    return render


def masked_line(document: Mapping[str, Any]) -> str:
    """Return an event as one line, its credentials and keys masked."""
    return json.dumps(events.mask(document))


def masked_result(result: Mapping[str, Any]) -> str:
    """Return a result as one line, masked as `masked_line` does it; what we have put in ourselves holds no secret."""
    ours = {"vaultml": result["vaultml"]}
    lists = {name: result["data"][name] for name in results.DATA}
    given = {**result, "vaultml": None, "data": {**result["data"], **dict.fromkeys(lists)}}
    masked = events.mask(given)
    return json.dumps({**masked, **ours, "data": {**masked["data"], **lists}})


class Metrics:
    """The worker's Prometheus metrics, all named `vaultml_…`; docs/metrics.md lists them."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._recordings = Counter(
            "vaultml_recordings",
            "Messages by final outcome: published, dead-letter, given-back, skipped",
            ["outcome"],
            registry=self.registry,
        )
        self._dead_letters = Counter("vaultml_dead_letters", "Dead letters by cause", ["cause"], registry=self.registry)
        self._stages = Histogram(
            "vaultml_stage_seconds",
            "Time per recording and stage",
            ["stage"],
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
            registry=self.registry,
        )
        self._detections = Counter("vaultml_detections", "Detections by label", ["label"], registry=self.registry)
        self.in_flight = Gauge(
            "vaultml_in_flight", "Messages received that have no final outcome yet", registry=self.registry
        )
        self._held = Gauge(
            "vaultml_held_recordings",
            "Recordings held by a transient failure, by cause",
            ["cause"],
            registry=self.registry,
        )
        self._retries = Counter(
            "vaultml_retries", "Tries that failed and were repeated, by cause", ["cause"], registry=self.registry
        )
        self._gpu = Gauge(
            "vaultml_gpu_info",
            "1 for the GPU in use",
            ["name", "uuid", "driver", "runtime"],
            registry=self.registry,
        )
        self._gpu_memory = Gauge("vaultml_gpu_memory_bytes", "Memory of the GPU in use", registry=self.registry)
        self.engine_built = Gauge(
            "vaultml_engine_build_progress", "Part of the engine that is built, 0 to 1", registry=self.registry
        )
        self.engine_batch = Gauge(
            "vaultml_engine_batch_frames", "Frames of the largest batch that fits", registry=self.registry
        )
        for outcome in Ended:
            self._recordings.labels(outcome)

    def ended(self, outcome: Ended, cause: str | None) -> None:
        """Count the final outcome of a message; `cause` is a dead letter's."""
        self._recordings.labels(outcome).inc()
        if cause is not None:
            self._dead_letters.labels(cause).inc()

    def processed(self, detections: Iterable[Sequence[Detection]], timings: MutableMapping[str, float]) -> None:
        """Count what a published result holds; `timings` in ms by stage."""
        for stage, milliseconds in timings.items():
            self._stages.labels(stage).observe(milliseconds / 1000)
        for frame in detections:
            for detection in frame:
                self._detections.labels(detection.label).inc()

    def held(self, cause: str, change: int) -> None:
        """Count one more (+1) or one less (-1) recording that is held by this cause."""
        self._held.labels(cause).inc(change)

    def gpu(self, name: str, uuid: str, driver: str, runtime: str, memory: int) -> None:
        """This GPU runs the network; `memory` in bytes."""
        self._gpu.labels(name, uuid, driver, runtime).set(1)
        self._gpu_memory.set(memory)

    def retried(self, cause: str) -> None:
        """A try failed and will be repeated."""
        self._retries.labels(cause).inc()


class Health:
    """What probes ask.

    Alive: still starting, or the loop turned within the last minute, the queue's client works (one that failed for
    good and was replaced in vain doesn't), and the GPU is not on one batch for minutes.
    Ready: the model is warm and the queue was joined once.
    """

    def __init__(self) -> None:
        self._turned: float | None = None
        self._queue_works = True
        self.ready = False
        self.busy_seconds: Callable[[], float] = float
        """For how long the GPU has worked on its batch; a driver can hang without an error."""

    def tick(self, *, queue_works: bool = True) -> None:
        """Note that the loop turned, and whether the queue's client works."""
        self._turned = time.monotonic()
        self._queue_works = queue_works

    @property
    def alive(self) -> bool:
        """Whether the loop still turns."""
        turns = self._turned is None or time.monotonic() - self._turned < _STUCK_S
        return turns and self._queue_works and self.busy_seconds() < _GPU_STUCK_S


class HttpServer:
    """Serves /healthz, /readyz and /metrics in a thread of its own; `port` is the one in use.

    `host` is an IPv4 or IPv6 address; `::` means all addresses of both, and of IPv4 alone where there is no IPv6.
    """

    def __init__(self, host: str, port: int, health: Health, metrics: Metrics) -> None:
        exposition = make_wsgi_app(metrics.registry)

        def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
            answers = {"/healthz": health.alive, "/readyz": health.ready}
            path = environ.get("PATH_INFO", "")
            if path == "/metrics":
                body: Iterable[bytes] = exposition(environ, start_response)
                return body
            status = (
                "404 Not Found" if path not in answers else "200 OK" if answers[path] else "503 Service Unavailable"
            )
            start_response(status, [("Content-Type", "text/plain")])
            return [status.encode() + b"\n"]

        try:
            self._server = make_server(host, port, app, _server(host), handler_class=_Silent)
        except OSError as error:
            if host != "::" or error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                raise
            self._server = make_server("0.0.0.0", port, app, ThreadingWSGIServer, handler_class=_Silent)  # noqa: S104
        self.port: int = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="http", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _server(host: str) -> type[ThreadingWSGIServer]:
    if ":" not in host:
        return ThreadingWSGIServer

    class Server(ThreadingWSGIServer):
        address_family = socket.AF_INET6

        def server_bind(self) -> None:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, host != "::")
            super().server_bind()

    return Server


class _Silent(WSGIRequestHandler):
    """Probes come every few seconds: they are no news."""

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it so
        """Log nothing."""
