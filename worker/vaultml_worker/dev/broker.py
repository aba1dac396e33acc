"""An embedded Kafka broker: the mock cluster that librdkafka carries. No login, no transactions, nothing on disk."""

import contextlib
import socket
import socketserver
import threading
from types import TracebackType
from typing import Self

from confluent_kafka import Producer


class EmbeddedBroker:
    """A broker in this process, for other processes of this machine; `address` is its `host:port`.

    The mock chooses its own port. With `port`, a relay listens there: clients that begin with that address learn
    the real one from it. `topics` are created.
    """

    def __init__(self, port: int = 0, topics: tuple[str, ...] = ()) -> None:
        self._cluster = Producer({"test.mock.num.brokers": 1, "log_level": 2})
        metadata = self._cluster.list_topics(timeout=10)
        broker = next(iter(metadata.brokers.values()))
        self.address = f"127.0.0.1:{broker.port}"
        self.create(*topics)
        self._relay = _Relay(port, broker.port) if port else None
        if self._relay is not None:
            self.address = f"127.0.0.1:{port}"
            threading.Thread(target=self._relay.serve_forever, name="relay", daemon=True).start()

    def create(self, *topics: str) -> None:
        """Create topics that aren't there yet, with the mock's 4 partitions."""
        for topic in topics:
            self._cluster.list_topics(topic, timeout=10)

    def close(self) -> None:
        """Stop listening; what was stored is gone."""
        if self._relay is not None:
            self._relay.shutdown()
            self._relay.server_close()
        self._cluster.flush(0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Relay(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, port: int, target: int) -> None:
        self.target = target
        super().__init__(("127.0.0.1", port), _Handler)


class _Handler(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        """Copy bytes both ways until either side ends."""
        assert isinstance(self.server, _Relay)
        with socket.create_connection(("127.0.0.1", self.server.target)) as upstream:
            back = threading.Thread(target=_copy, args=(upstream, self.request), daemon=True)
            back.start()
            _copy(self.request, upstream)
            back.join()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while chunk := source.recv(1 << 16):
            target.sendall(chunk)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)
