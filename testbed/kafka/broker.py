"""A real Kafka broker on 127.0.0.1 with a listener for each way of connecting that we support."""

import base64
import os
import secrets
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

import trustme
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic  # also in confluent_kafka.admin, but not for type checkers
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from testbed.guard import Guard
from testbed.kafka.distribution import jars
from testbed.process import LOOPBACK, Process, free_port, wait_for

_LISTENERS = ("PLAINTEXT", "SASL_PLAINTEXT", "SSL", "SASL_SSL")
_SCRAM = ("SCRAM-SHA-256", "SCRAM-SHA-512")
_KEPT_LOGS = Path(__file__).parents[2] / ".test-output"
_START_S = 60
_STOP_S = 30
_JAVA = (
    "-Xmx512m",
    "-XX:+UseSerialGC",  # one broker with next to no load: fewer threads
    "-XX:TieredStopAtLevel=1",  # starts faster on the few cores a test machine has
    "-XX:-UsePerfData",  # no file of its own in /tmp
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
)
# What a cluster of one needs, and what keeps tests from waiting: topic defaults and time-outs are made for three
# brokers and real networks.
_SETTINGS = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.listener.names": "CONTROLLER",
    "inter.broker.listener.name": "PLAINTEXT",
    "sasl.enabled.mechanisms": ",".join(("PLAIN", *_SCRAM)),
    "ssl.client.auth": "none",
    "ssl.keystore.type": "PEM",
    "num.partitions": "1",
    "offsets.topic.num.partitions": "3",
    "offsets.topic.replication.factor": "1",
    "transaction.state.log.num.partitions": "3",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "share.coordinator.state.topic.num.partitions": "3",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "1000",
    # The new group protocol takes these two from the broker, never from the client.
    "group.consumer.min.session.timeout.ms": "1000",
    "group.consumer.session.timeout.ms": "6000",
    "group.consumer.min.heartbeat.interval.ms": "500",
    "group.consumer.heartbeat.interval.ms": "500",
}


class Broker:
    """One Kafka broker (its own controller too) with four listeners: plain, TLS, and both with SASL.

    Entering the context formats the storage and starts it; leaving ends it and removes its data. When the block
    fails, the log is kept under `.test-output/`. Ports and data stay the same through `stop` and `start`.
    """

    username = "vault"
    # Passwords made by machines look like this; JAAS, properties files and our own settings all have to cope.
    password = 's3cr!@#$%&*"\\;=t'

    def __init__(self, *, auto_create_topics: bool = False) -> None:
        """Choose ports and issue the certificates; `auto_create_topics` lets clients create topics by using them."""
        self._data = tempfile.TemporaryDirectory(prefix="vaultml-kafka-")
        self.folder = Path(self._data.name)
        self.ca_file = self.folder / "ca.pem"
        self._log = self.folder / "broker.log"
        self._properties = self.folder / "server.properties"
        self._ports = {name: free_port() for name in ("CONTROLLER", *_LISTENERS)}
        # 16 bytes whose base64 form never starts with "-", which StorageTool would take for an option.
        self._cluster_id = base64.urlsafe_b64encode(b"vaultml-" + secrets.token_bytes(8)).decode().rstrip("=")
        self._process: Process | None = None
        self._guard = Guard(self.folder)
        self._write_certificates()
        self._write_properties(auto_create_topics)

    def __enter__(self) -> Self:
        try:
            self._format_storage()
            self.start()
        except BaseException as error:
            self.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._process is not None:
                self._guard.forget(self._process.pid)
                self._process.kill()  # nobody reads the data again: no need for the seconds of an orderly end
            if kind is not None:
                self.keep_log()
        finally:
            self._guard.__exit__(None, None, None)
            self._data.cleanup()

    @property
    def plaintext(self) -> str:
        """Address for clients without TLS or login."""
        return self._address("PLAINTEXT")

    @property
    def sasl_plaintext(self) -> str:
        """Address for clients that log in (PLAIN, SCRAM-SHA-256, SCRAM-SHA-512) without TLS."""
        return self._address("SASL_PLAINTEXT")

    @property
    def ssl(self) -> str:
        """Address for TLS clients, which trust `ca_file`; no client certificate is asked for."""
        return self._address("SSL")

    @property
    def sasl_ssl(self) -> str:
        """Address for TLS clients that log in, too."""
        return self._address("SASL_SSL")

    @property
    def pid(self) -> int | None:
        """Process id of the broker, None while it is stopped."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start the broker on the data it has and return once it serves every partition.

        Raises RuntimeError or TimeoutError, with the end of its log, when it does not come up.
        """
        if self._process is not None:
            raise RuntimeError("the broker runs already")
        command = [*self._java(), "kafka.Kafka", self._properties]
        self._process = Process(command, env=self._env(), log=self._log)
        self._guard.watch(self._process.pid)
        admin = self._admin()
        try:
            wait_for(lambda: self._serves(admin), _START_S, "the Kafka broker to answer", process=self._process)
        except BaseException:
            self._guard.forget(self._process.pid)
            self._process.kill()
            self._process = None
            raise

    def stop(self) -> None:
        """End the broker in an orderly way; its data and ports stay for `start`."""
        if self._process is not None:
            self._guard.forget(self._process.pid)
            self._process.terminate(grace=_STOP_S)
            self._process = None

    def restart(self) -> None:
        """Stop the broker and start it again on the same data and ports."""
        self.stop()
        self.start()

    def create_topic(self, name: str, partitions: int = 1, **config: str) -> None:
        """Create a topic and return once it can be used.

        `config` holds topic settings with underscores for dots (`retention_ms="1000"`). Raises KafkaException when
        the broker refuses, as it does for a name that exists.
        """
        settings = {key.replace("_", "."): value for key, value in config.items()}
        topic = NewTopic(name, num_partitions=partitions, replication_factor=1, config=settings)
        admin = self._admin()
        admin.create_topics([topic])[name].result(timeout=_START_S)
        wait_for(lambda: self._serves(admin, name), _START_S, f"topic {name} to get its leaders", process=self._process)

    def keep_log(self) -> Path | None:
        """Copy the log to `.test-output/`, as is done on failure; returns where it lies, None when there is no log."""
        if not self._log.exists():
            return None
        _KEPT_LOGS.mkdir(exist_ok=True)
        return Path(shutil.copy(self._log, _KEPT_LOGS / f"{self.folder.name}.log"))

    def _address(self, listener: str) -> str:
        return f"{LOOPBACK}:{self._ports[listener]}"

    def _admin(self) -> AdminClient:
        return AdminClient(
            {
                "bootstrap.servers": self.plaintext,
                "reconnect.backoff.max.ms": 200,
                "log_level": 0,  # that a starting broker refuses connections is no news
            }
        )

    def _serves(self, admin: AdminClient, topic: str | None = None) -> bool:
        """Whether this very broker answers, with a leader for each partition (of `topic`, or of all there are)."""
        try:
            cluster = admin.list_topics(topic, timeout=1) if topic else admin.list_topics(timeout=1)
        except KafkaException:
            return False
        return (
            str(cluster.cluster_id) == self._cluster_id  # not another broker that got hold of the port
            and 1 in cluster.brokers
            and (topic is None or bool(cluster.topics[topic].partitions))
            and all(part.leader == 1 for found in cluster.topics.values() for part in found.partitions.values())
        )

    def _write_certificates(self) -> None:
        authority = trustme.CA()
        authority.cert_pem.write_to_path(self.ca_file)
        server = authority.issue_cert(LOOPBACK)
        # Kafka reads private keys in PKCS#8 form only, trustme writes the older one.
        key = load_pem_private_key(server.private_key_pem.bytes(), password=None)
        pem = [
            key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
            *(certificate.bytes() for certificate in server.cert_chain_pems),
        ]
        (self.folder / "server.pem").write_bytes(b"".join(pem))

    def _write_properties(self, auto_create_topics: bool) -> None:
        password = self.password.replace("\\", "\\\\").replace('"', '\\"')  # as JAAS wants it between quotes
        plain = f'org.apache.kafka.common.security.plain.PlainLoginModule required user_{self.username}="{password}";'
        scram = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
        protocols = {"CONTROLLER": "PLAINTEXT", **{name: name for name in _LISTENERS}}
        settings = _SETTINGS | {
            "controller.quorum.voters": f"1@{self._address('CONTROLLER')}",
            "listeners": ",".join(f"{name}://{self._address(name)}" for name in protocols),
            "advertised.listeners": ",".join(f"{name}://{self._address(name)}" for name in _LISTENERS),
            "listener.security.protocol.map": ",".join(f"{name}:{protocol}" for name, protocol in protocols.items()),
            "ssl.keystore.location": str(self.folder / "server.pem"),
            "log.dirs": str(self.folder / "data"),
            "auto.create.topics.enable": str(auto_create_topics).lower(),
        }
        for listener in ("sasl_plaintext", "sasl_ssl"):
            settings[f"listener.name.{listener}.plain.sasl.jaas.config"] = plain
            for mechanism in _SCRAM:
                settings[f"listener.name.{listener}.{mechanism.lower()}.sasl.jaas.config"] = scram
        # A backslash is the escape character of properties files.
        lines = (f"{key}={value}\n".replace("\\", "\\\\") for key, value in settings.items())
        self._properties.write_text("".join(lines))

    def _format_storage(self) -> None:
        """Create the data folder; the SCRAM logins are part of a cluster's first metadata."""
        # StorageTool takes off the outer quotes and unescapes nothing; a comma would end the password all the same.
        login = f'[name={self.username},password="{self.password}"]'
        command = [*self._java(), "kafka.tools.StorageTool", "format", "-c", self._properties, "-t", self._cluster_id]
        for mechanism in _SCRAM:
            command += ["-S", f"{mechanism}={login}"]
        with self._log.open("ab") as log:
            tool = subprocess.run(
                command, env=self._env(), stdout=log, stderr=subprocess.STDOUT, timeout=_START_S, check=False
            )
        if tool.returncode != 0:
            raise RuntimeError(f"Kafka's StorageTool failed (status {tool.returncode}):\n{self._log.read_text()}")

    def _java(self) -> list[str | Path]:
        return ["java", *_JAVA, f"-Djava.io.tmpdir={self.folder}", "-cp", jars() / "*"]

    def _env(self) -> dict[str, str]:
        return {"PATH": os.environ["PATH"], "LANG": "C.UTF-8"}
