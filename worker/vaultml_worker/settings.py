"""The worker's environment: every variable, its default, meaning and secrecy.

Composed of what every worker has, here, and the part of the queue system that QUEUE_SYSTEM names (queues/).
"""

from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import unquote, urlsplit

from pydantic import Field, PrivateAttr, SecretStr, field_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import NoDecode

from vaultml_worker import environment
from vaultml_worker.environment import Environment, split
from vaultml_worker.queues import SYSTEMS, Names, System
from vaultml_worker.records import MODEL_URL, PUBLISHED_MODELS, InvalidInput, VaultAccess
from vaultml_worker.transport import Transport, environment_cas, is_address, no_certificates

_LATER = {"forwarding_media", "forwarding_metadata", "remove_after_processed"}
_HUB_QUEUES = ("kcloud-classify-queue", "kcloud-analysis-queue")
"""Queues of Hub's classifier, whose results have a format of their own."""


class Settings(Environment):
    """hub-ml's variables with their fixed names, and ours. An empty value counts as absent."""

    queue_system: str = Field(default="KAFKA", description="The kind of queue.")
    queue_name: str = Field(description="Queue (Kafka: topic) that the events are read from.")
    queue_target: str = Field(
        default="", description="Queue (Kafka: topic) that the results go to; empty publishes nothing."
    )

    vault_api_url: str = Field(
        default="", description="Vault's address, with `/api` for newer Vaults. Absent: each event brings its own."
    )
    vault_access_key: SecretStr = Field(default=SecretStr(""), description="Vault access key.")
    vault_secret_key: SecretStr = Field(default=SecretStr(""), description="Vault secret key.")
    vault_ssl_ca: Path | None = Field(
        default=None,
        description="File with the CA that signed the certificate of Vault or its storage, trusted besides the usual "
        "ones; SSL_CERT_FILE and REQUESTS_CA_BUNDLE are honoured too.",
    )
    vault_proxy: SecretStr = Field(
        default=SecretStr(""),
        description="Proxy for Vault itself, which sees our keys where Vault has no TLS. HTTPS_PROXY, HTTP_PROXY and "
        "NO_PROXY are used for signed URLs only.",
    )
    vault_download: Literal["blob", "signed-url"] = Field(
        default="blob", description="`blob`: through Vault. `signed-url`: straight from its storage provider."
    )

    number_of_predictions: int = Field(
        default=5, ge=1, le=1000, description="Sampled frames per recording, spread evenly over its duration."
    )
    move_distance: float = Field(
        default=0,
        ge=0,
        allow_inf_nan=False,
        description="Pixels that an object's box centre must travel to count as moving; 0: everything counts.",
    )
    forwarding_media: bool = Field(default=False, description="Not there yet: only `false` is accepted.")
    forwarding_metadata: bool = Field(default=False, description="Not there yet: only `false` is accepted.")
    forwarding_object_threshold: int = Field(default=1, ge=0, description="Accepted; has no effect without forwarding.")
    remove_after_processed: bool = Field(default=False, description="Not there yet: only `false` is accepted.")

    model: str | None = Field(
        default=None,
        description="A Darknet `.cfg` or an `.onnx`: a file or an http(s) URL; or a published model, `yolov3` or "
        "`yolov3-tiny`, which is fetched once. Absent: the image's own, else `yolov3-tiny`.",
    )
    model_sha256: str | None = Field(
        default=None,
        pattern="^[0-9a-f]{64}$",
        description="SHA-256 of the `.onnx`, or of the weights of a `.cfg`; another file is refused. A URL needs it.",
    )
    model_precision: Literal["auto", "fp32", "fp16"] = Field(
        default="auto",
        description="Precision of a Darknet network's convolutions. `auto`: the engine's best. An `.onnx` has its own.",
    )
    model_weights: Path | None = Field(
        default=None, description="Darknet weights; absent: the file beside the `.cfg` that ends in `.weights`."
    )
    model_names: Path | None = Field(
        default=None,
        description="Labels, one a line; absent: the file beside the model that ends in `.names`, else those in the "
        ".onnx; else 80 classes are COCO's.",
    )
    engine: Literal["auto", "onnxruntime", "tensorrt"] = Field(
        default="auto",
        description="What runs the network. `auto`: the GPU where one can be used, else the CPU. `tensorrt`: the GPU; "
        "without one the worker ends rather than fall back to the CPU.",
    )
    engine_batch: int = Field(
        default=16, ge=1, le=256, description="Frames in a full batch of `tensorrt`; halved while memory is short."
    )
    engine_cache: Path | None = Field(
        default=None,
        description="Folder that keeps built engines between starts, shared by the workers of a node; used by "
        "`tensorrt`. Absent: the user's cache.",
    )
    detection_threshold: float = Field(default=0.5, gt=0, lt=1, description="Least probability of a detection.")
    detection_classes: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="Labels to report, comma-separated; empty: all."
    )

    recordings_in_flight: int = Field(default=4, ge=1, le=256, description="Recordings in work at the same time.")
    recording_max_bytes: int = Field(
        default=256 << 20, ge=1 << 20, description="Largest recording, in bytes; at least 1 MiB."
    )
    recording_max_pixels: int = Field(
        default=40_000_000, ge=100_000, description="Largest frame, in pixels (width times height); at least 100,000."
    )
    recording_max_frames: int = Field(
        default=200_000, ge=1000, description="Most frames in one recording; at least 1,000."
    )
    decoder_seconds: float = Field(
        default=60, ge=1, allow_inf_nan=False, description="Time that decoding one recording may take, in seconds."
    )
    decoder_bytes: int = Field(
        default=2 << 30, ge=256 << 20, description="Memory that one decoder process may use, in bytes."
    )

    http_host: str = Field(
        default="::",
        description="Address of health, readiness and metrics: IPv4 or IPv6, `::` for all addresses of both.",
    )
    http_port: int = Field(default=8080, ge=0, le=65535, description="Its port; 0 picks a free one.")
    log_format: Literal["console", "json"] = Field(default="console", description="How the log is written.")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(default="INFO", description="Least level logged.")

    @field_validator(*sorted(_LATER))
    @classmethod
    def _not_yet(cls, value: bool) -> bool:
        if value:
            raise PydanticCustomError("later", "true is not supported by this version yet: set it to false")
        return value

    @field_validator("queue_system")
    @classmethod
    def _system(cls, value: str) -> str:
        if value.upper() not in SYSTEMS:
            raise PydanticCustomError(
                "choice",
                "{value} is no queue system: give one of {names}",
                {"value": value, "names": ", ".join(SYSTEMS)},
            )
        return value.upper()

    @field_validator("queue_name")
    @classmethod
    def _no_hub(cls, value: str) -> str:
        if value.removesuffix(".fifo") in _HUB_QUEUES:
            raise PydanticCustomError("later", "the queues of Hub's classifier are not supported by this version yet")
        return value

    @field_validator("vault_api_url")
    @classmethod
    def _address(cls, value: str) -> str:
        if "@" in urlsplit(value).netloc:
            raise PydanticCustomError("address", "must not hold a user or password")
        if value and ("?" in value or not is_address(value)):
            raise PydanticCustomError(
                "address", "must look like http://vault-lb.kerberos-vault/api, without blanks, query or fragment"
            )
        return value

    @field_validator("vault_ssl_ca")
    @classmethod
    def _authority(cls, value: Path | None) -> Path | None:
        if value is not None and (wrong := no_certificates(value)) is not None:
            raise PydanticCustomError("file", "{path}: {wrong}", {"path": str(value), "wrong": wrong})
        return value

    @field_validator("vault_proxy")
    @classmethod
    def _proxy(cls, value: SecretStr) -> SecretStr:
        if value.get_secret_value() and not is_address(value.get_secret_value()):  # not quoted: it may hold a password
            raise PydanticCustomError("address", "must look like http://proxy.example:3128")
        return value

    @field_validator("http_host")
    @classmethod
    def _host(cls, value: str) -> str:
        host = value.removeprefix("[").removesuffix("]")
        try:
            ip_address(host)
        except ValueError:
            if host != "localhost":
                raise PydanticCustomError(
                    "address", "must be an IPv4 or IPv6 address, such as 0.0.0.0, :: or ::1, or localhost"
                ) from None
        return host

    @field_validator("detection_classes", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return split(value)

    @field_validator("model_sha256", mode="before")
    @classmethod
    def _lower(cls, value: Any) -> Any:
        return value.lower() if isinstance(value, str) else value

    @field_validator("model")
    @classmethod
    def _model(cls, value: str | None) -> str | None:
        if value is None or value in PUBLISHED_MODELS or MODEL_URL.fullmatch(value):
            return value
        if "://" in value:  # not quoted: it may hold a password
            raise PydanticCustomError(
                "address", "a URL must be http(s), end in .cfg or .onnx, and have no user, password, query or fragment"
            )
        if not Path(value).is_file():
            raise PydanticCustomError(
                "file",
                "no such file: {path}; give a .cfg, an .onnx, a URL of one, or one of {names}",
                {"path": value, "names": ", ".join(PUBLISHED_MODELS)},
            )
        return value

    @field_validator("model_weights", "model_names")
    @classmethod
    def _readable(cls, value: Path | None) -> Path | None:
        if value is not None and not value.is_file():
            raise PydanticCustomError("file", "no such file: {path}", {"path": str(value)})
        return value

    def conflicts(self) -> Iterator[str]:
        """See Environment."""
        vault = {
            "VAULT_API_URL": self.vault_api_url,
            "VAULT_ACCESS_KEY": self.vault_access_key.get_secret_value(),
            "VAULT_SECRET_KEY": self.vault_secret_key.get_secret_value(),
        }
        if any(vault.values()) and not all(vault.values()):
            yield from (
                f"{name}: give all three VAULT_ variables or none" for name, value in vault.items() if not value
            )
        for name, path in environment_cas().items():
            if wrong := no_certificates(path):
                yield f"{name}: {path}: {wrong}"
        if self.model is not None and MODEL_URL.fullmatch(self.model) and self.model_sha256 is None:
            yield "MODEL_SHA256: needed with a URL as MODEL: the digest of the .onnx, or of the .cfg's weights"
        yield from self._name_conflicts()

    def _name_conflicts(self) -> Iterator[str]:
        system = SYSTEMS[self.queue_system]
        for variable, name in (("QUEUE_NAME", self.queue_name), ("QUEUE_TARGET", self.queue_target)):
            if name and (wrong := system.wrong_name(name)):
                yield f"{variable}: {name} {wrong}"
        if self.queue_target == self.queue_name:
            yield "QUEUE_TARGET: must differ from QUEUE_NAME, or each result is taken for a new event"
        elif self.names.dead_letters == self.queue_name:
            yield (
                f"QUEUE_NAME, QUEUE_TARGET: dead letters would go to {self.queue_name}, where they are read from; "
                "read them with another QUEUE_TARGET"
            )

    _queue: Environment | None = PrivateAttr(default=None)

    @property
    def system(self) -> System:
        """The queue system."""
        return SYSTEMS[self.queue_system]

    @property
    def queue(self) -> Environment:
        """The queue system's own settings."""
        assert self._queue is not None
        return self._queue

    @property
    def names(self) -> Names:
        """The names of the queues."""
        dead_letters = self.system.dead_letters(self.queue_name, self.queue_target)
        return Names(self.queue_name, self.queue_target, dead_letters)

    @property
    def vault(self) -> VaultAccess | None:
        """The worker's own Vault, or None when each event brings its own."""
        if not self.vault_api_url:
            return None
        return VaultAccess(
            self.vault_api_url, self.vault_access_key.get_secret_value(), self.vault_secret_key.get_secret_value()
        )

    def transport(self) -> Transport:
        """Return new connections for Vault and its storage."""
        proxy = self.vault_proxy.get_secret_value()
        return Transport(ca=self.vault_ssl_ca, proxy=proxy, connections=self.recordings_in_flight)

    @property
    def secrets(self) -> tuple[str, ...]:
        """See Environment; those of the queue system, and a proxy's password, are among them."""
        password = urlsplit(self.vault_proxy.get_secret_value()).password
        parts = {password, unquote(password)} if password else set()
        return (*super().secrets, *parts, *(self._queue.secrets if self._queue is not None else ()))


def load(**overrides: Any) -> Settings:
    """Read the environment; `overrides` go before it.

    Raises InvalidInput with one message that names every wrong or missing variable.
    """
    loaded, wrong = examine(**overrides)
    if wrong:
        raise InvalidInput("wrong settings:\n  " + "\n  ".join(wrong))
    return loaded


def examine(**overrides: Any) -> tuple[Settings, list[str]]:
    """Return the settings whatever they are, and what is wrong with them: see environment.examine."""
    loaded, wrong = environment.examine(Settings, **overrides)
    loaded._queue, more = environment.examine(loaded.system.settings, **overrides)
    return loaded, wrong + more


def variables() -> Iterator[tuple[str, str | None, bool, str]]:
    """Yield each variable of the worker and of every queue system; see environment.variables."""
    parts: list[type[Environment]] = [Settings, *(system.settings for system in SYSTEMS.values())]
    for part in parts:
        yield from environment.variables(part)


def reference() -> str:
    """Return docs/variables.md."""
    rows = [
        "# The worker's environment variables",
        "",
        "Written by `make docs` from `worker/vaultml_worker/settings.py` and `queues/`.",
        "An empty value counts as absent.",
        "White space, line ends and quotes around addresses, names, numbers and switches are removed.",
        "Around a password, a key or `VAULT_PROXY` they are refused, by name.",
        "The usual `SSL_CERT_FILE`, `REQUESTS_CA_BUNDLE`, `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY` are honoured as "
        "`VAULT_SSL_CA`, `KAFKA_SSL_CA` and `VAULT_PROXY` say.",
        "",
    ]
    parts: dict[str, type[Environment]] = {"Every worker": Settings}
    parts |= {f"`QUEUE_SYSTEM={name}`": each.settings for name, each in SYSTEMS.items()}
    for title, part in parts.items():
        rows += [f"## {title}", "", "| variable | default | secret | meaning |", "| --- | --- | --- | --- |"]
        for name, default, secret, meaning in environment.variables(part):
            shown = "**required**" if default is None else f"`{default}`" if default else ""
            rows.append(f"| `{name}` | {shown} | {'yes' if secret else ''} | {meaning} |")
        rows.append("")
    return "\n".join(rows[:-1]) + "\n"
