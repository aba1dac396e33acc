"""A small Kerberos site on this machine: embedded broker, file-backed Vault, and clients for looking at topics."""

import json
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from confluent_kafka import Producer

from vaultml_worker.dev.broker import EmbeddedBroker
from vaultml_worker.dev.vault import Account, VaultServer, application
from vaultml_worker.queues.kafka import reader

ACCOUNT = Account("s1te-access!@#$%", "s1te-secret!@#$%", "local")


@dataclass
class Site:
    """A Vault with its folder, and topics of its own on the broker."""

    broker: EmbeddedBroker
    vault: VaultServer
    recordings: Path
    name: str = field(default_factory=lambda: f"ml-{uuid.uuid4().hex[:8]}")

    @property
    def variables(self) -> dict[str, str]:
        """hub-ml's variables for a worker here."""
        return {
            "QUEUE_SYSTEM": "KAFKA",
            "QUEUE_NAME": self.name,
            "QUEUE_TARGET": f"{self.name}-results",
            "KAFKA_BROKER": self.broker.address,
            "KAFKA_GROUP": self.name,
            "VAULT_API_URL": f"{self.vault.url}/api",
            "VAULT_ACCESS_KEY": ACCOUNT.access_key,
            "VAULT_SECRET_KEY": ACCOUNT.secret_key,
            "NUMBER_OF_PREDICTIONS": "2",
        }

    def store(self, name: str, body: bytes) -> str:
        """Put a recording into the Vault; gives its key."""
        path = self.recordings / ACCOUNT.provider / "user" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
        return f"user/{name}"

    def announce(self, *bodies: bytes) -> None:
        """Publish messages to the queue."""
        producer = Producer({"bootstrap.servers": self.broker.address, "log_level": 2})
        for body in bodies:
            producer.produce(self.name, body)
        assert producer.flush(20) == 0

    def messages(self, topic: str, count: int, timeout: float = 60) -> list[bytes]:
        """The first `count` messages of a topic; fewer when they don't come in time."""
        found: list[bytes] = []
        stop = threading.Event()
        timer = threading.Timer(timeout, stop.set)
        timer.start()
        try:
            for body in reader.follow({"bootstrap.servers": self.broker.address}, topic, stop):
                if body is not None:
                    found.append(body)
                if len(found) >= count:
                    break
        finally:
            timer.cancel()
        return found

    def results(self, count: int, timeout: float = 60) -> dict[str, dict[str, Any]]:
        """Results by key."""
        bodies = [json.loads(body) for body in self.messages(f"{self.name}-results", count, timeout)]
        return {result["payload"]["key"]: result for result in bodies}


def event(key: str, **changes: Any) -> bytes:
    """An event for a recording of this site."""
    return json.dumps({"provider": "kstorage", "source": ACCOUNT.provider, "payload": {"key": key}, **changes}).encode()


@contextmanager
def site(broker: EmbeddedBroker, folder: Path) -> Iterator[Site]:
    """A site whose Vault runs for the length of the block; its topics exist."""
    vault = VaultServer(application(folder / "recordings", ACCOUNT))
    running = Site(broker, vault, folder / "recordings")
    broker.create(running.name, f"{running.name}-results", f"{running.name}-results.dlq")
    try:
        yield running
    finally:
        vault.close()
