"""The worker's environment: every variable, its default, meaning and secrecy, in one model."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from vaultml_worker.records import MODEL_URL, PUBLISHED_MODELS, InvalidInput, VaultAccess

_LATER = {"forwarding_media", "forwarding_metadata", "remove_after_processed"}


class Settings(BaseSettings):
    """hub-ml's variables with their fixed names, and ours. An empty value counts as absent."""

    model_config = SettingsConfigDict(env_ignore_empty=True, frozen=True, hide_input_in_errors=True, extra="ignore")

    queue_system: Literal["KAFKA"] = Field(default="KAFKA", description="The kind of queue.")
    queue_name: str = Field(description="Topic that the events are read from.")
    queue_target: str = Field(default="", description="Topic that the results go to; empty publishes nothing.")

    kafka_broker: Annotated[tuple[str, ...], NoDecode] = Field(description="Brokers, `host:port`, comma-separated.")
    kafka_group: str = Field(description="Consumer group.")
    kafka_security: Literal["PLAINTEXT", "SASL_PLAINTEXT", "SASL_SSL", "SSL"] = Field(
        default="PLAINTEXT", description="How to talk to the brokers."
    )
    kafka_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        default="PLAIN", description="SASL mechanism."
    )
    kafka_username: str = Field(default="", description="SASL user.")
    kafka_password: SecretStr = Field(default=SecretStr(""), description="SASL password.")
    kafka_ssl_ca: Path | None = Field(
        default=None, description="File with the CA that signed the brokers' certificate."
    )
    kafka_ssl_cert: Path | None = Field(default=None, description="File with our client certificate.")
    kafka_ssl_key: Path | None = Field(default=None, description="File with our client key.")
    kafka_offset_reset: Literal["earliest", "latest"] = Field(
        default="earliest", description="Where a group without commits begins."
    )

    vault_api_url: str = Field(
        default="", description="Vault's address, with `/api` for newer Vaults. Absent: each event brings its own."
    )
    vault_access_key: SecretStr = Field(default=SecretStr(""), description="Vault access key.")
    vault_secret_key: SecretStr = Field(default=SecretStr(""), description="Vault secret key.")
    vault_download: Literal["blob", "signed-url"] = Field(
        default="blob", description="`blob`: through Vault. `signed-url`: straight from its storage provider."
    )

    number_of_predictions: int = Field(
        default=5, ge=1, le=1000, description="Frames looked at per recording, spread evenly over its duration."
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
        description="Labels, one a line; absent: the file beside the model that ends in `.names`, else COCO.",
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
    recording_max_bytes: int = Field(default=256 << 20, ge=1, description="Largest recording, in bytes.")
    recording_max_pixels: int = Field(default=40_000_000, ge=1, description="Largest frame, in pixels.")
    recording_max_frames: int = Field(default=200_000, ge=1, description="Most frames in one recording.")
    decoder_seconds: float = Field(default=60, gt=0, description="Time that decoding one recording may take.")
    decoder_bytes: int = Field(
        default=2 << 30, ge=256 << 20, description="Memory that one decoder process may use, in bytes."
    )

    http_host: str = Field(default="0.0.0.0", description="Address of health, readiness and metrics.")  # noqa: S104 - probes come from outside the pod
    http_port: int = Field(default=8080, ge=0, le=65535, description="Its port; 0 picks a free one.")
    log_format: Literal["console", "json"] = Field(default="console", description="How the log is written.")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(default="INFO", description="Least level logged.")

    @field_validator("kafka_broker", "detection_classes", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("kafka_broker")
    @classmethod
    def _at_least_one(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise PydanticCustomError("missing", "names no broker: give host:port, comma-separated")
        return value

    @field_validator("queue_system", "kafka_security", "kafka_mechanism", "log_level", mode="before")
    @classmethod
    def _upper(cls, value: Any) -> Any:
        return value.upper() if isinstance(value, str) else value

    @field_validator(*sorted(_LATER))
    @classmethod
    def _not_yet(cls, value: bool) -> bool:
        if value:
            raise PydanticCustomError("later", "true is not supported by this version yet: set it to false")
        return value

    @field_validator("queue_name")
    @classmethod
    def _no_hub(cls, value: str) -> str:
        if value.startswith("kcloud-"):
            raise PydanticCustomError("later", "a Hub queue (kcloud-…) is not supported by this version yet")
        return value

    @field_validator("vault_api_url")
    @classmethod
    def _address(cls, value: str) -> str:
        try:
            parts = urlsplit(value)
            good = not value or (parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0)
            plain = not (parts.username or parts.password)
        except ValueError:
            good = plain = False
        if not (good and plain):
            raise PydanticCustomError(
                "address", "must look like http://vault-lb.kerberos-vault/api, without user or password"
            )
        return value

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

    @field_validator("kafka_ssl_ca", "kafka_ssl_cert", "kafka_ssl_key", "model_weights", "model_names")
    @classmethod
    def _readable(cls, value: Path | None) -> Path | None:
        if value is not None and not value.is_file():
            raise PydanticCustomError("file", "no such file: {path}", {"path": str(value)})
        return value

    @model_validator(mode="after")
    def _belong_together(self) -> "Settings":
        wrong = []
        if self.kafka_security.startswith("SASL"):
            wrong += [
                f"{name.upper()}: needed with KAFKA_SECURITY={self.kafka_security}"
                for name, value in (("kafka_username", self.kafka_username), ("kafka_password", self.kafka_password))
                if not (value if isinstance(value, str) else value.get_secret_value())
            ]
        vault = {
            "VAULT_API_URL": self.vault_api_url,
            "VAULT_ACCESS_KEY": self.vault_access_key.get_secret_value(),
            "VAULT_SECRET_KEY": self.vault_secret_key.get_secret_value(),
        }
        if any(vault.values()) and not all(vault.values()):
            wrong += [f"{name}: give all three VAULT_ variables or none" for name, value in vault.items() if not value]
        if bool(self.kafka_ssl_cert) != bool(self.kafka_ssl_key):
            wrong.append("KAFKA_SSL_CERT, KAFKA_SSL_KEY: one needs the other")
        if self.model is not None and MODEL_URL.fullmatch(self.model) and self.model_sha256 is None:
            wrong.append("MODEL_SHA256: needed with a URL as MODEL: the digest of the .onnx, or of the .cfg's weights")
        if self.queue_target and self.queue_target == self.queue_name:
            wrong.append("QUEUE_TARGET: must differ from QUEUE_NAME, or each result is taken for a new event")
        if wrong:
            raise PydanticCustomError("together", "{problems}", {"problems": "\n  ".join(wrong)})
        return self

    @property
    def dead_letter_target(self) -> str:
        """Topic for events that can't be processed."""
        return f"{self.queue_target or self.queue_name}.dlq"

    @property
    def vault(self) -> VaultAccess | None:
        """The worker's own Vault, or None when each event brings its own."""
        if not self.vault_api_url:
            return None
        return VaultAccess(
            self.vault_api_url, self.vault_access_key.get_secret_value(), self.vault_secret_key.get_secret_value()
        )

    @property
    def secrets(self) -> tuple[str, ...]:
        """The secret values, for masking them in the log."""
        values = (getattr(self, name) for name in type(self).model_fields)
        return tuple(v.get_secret_value() for v in values if isinstance(v, SecretStr) and v.get_secret_value())


class _EachAlone(Settings):
    """Settings that need not belong together."""

    @model_validator(mode="after")
    def _belong_together(self) -> "_EachAlone":
        return self


def load(**overrides: Any) -> Settings:
    """Read the environment; `overrides` go before it.

    Raises InvalidInput with one message that names every wrong or missing variable.
    """
    loaded, wrong = examine(**overrides)
    if wrong:
        raise InvalidInput("wrong settings:\n  " + "\n  ".join(wrong))
    return loaded


def examine(**overrides: Any) -> tuple[Settings, list[str]]:
    """As `load`, but gives the settings whatever they are, with stand-ins for wrong ones.

    Beside them a line for each that is wrong: its name, or names with commas, a colon, and what to do.
    """
    try:
        return Settings(**overrides), []
    except ValidationError as error:
        wrong = {str(item["loc"][0]): item for item in error.errors(include_url=False) if item["loc"]}
        lines = [f"{name.upper()}: {_sentence(item['type'], item['msg'])}" for name, item in wrong.items()]
        conflicts = [item["msg"] for item in error.errors(include_url=False) if not item["loc"]]
    fields = Settings.model_fields
    stand_ins = overrides | {name: "stand-in" if fields[name].is_required() else fields[name].default for name in wrong}
    if wrong:
        # pydantic looks at conflicts between variables only once each is right: ask again with stand-ins for the wrong.
        try:
            Settings(**stand_ins)
        except ValidationError as error:
            conflicts = [item["msg"] for item in error.errors(include_url=False) if not item["loc"]]
    lines += [
        line
        for conflict in conflicts
        for line in conflict.split("\n  ")
        if not any(name.upper() in line.partition(":")[0] for name in wrong)
    ]
    return _EachAlone(**stand_ins), lines


def _sentence(kind: str, message: str) -> str:
    return "missing: set it" if kind == "missing" and message == "Field required" else message[:1].lower() + message[1:]


def variables() -> Iterator[tuple[str, str | None, bool, str]]:
    """Each variable: name, default as it would be written (None: required), whether it is secret, meaning."""
    for name, field in Settings.model_fields.items():
        default = field.default.get_secret_value() if isinstance(field.default, SecretStr) else field.default
        choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
        meaning = (field.description or "") + (f" One of {', '.join(choices)}." if choices else "")
        yield name.upper(), None if field.is_required() else _text(default), field.annotation is SecretStr, meaning


def reference() -> str:
    """docs/variables.md: the variables as a Markdown table."""
    rows = [
        "# The worker's environment variables",
        "",
        "Written by `make docs` from `worker/vaultml_worker/settings.py`. An empty value counts as absent.",
        "",
        "| variable | default | secret | meaning |",
        "| --- | --- | --- | --- |",
    ]
    for name, default, secret, meaning in variables():
        shown = "**required**" if default is None else f"`{default}`" if default else ""
        rows.append(f"| `{name}` | {shown} | {'yes' if secret else ''} | {meaning} |")
    return "\n".join(rows) + "\n"


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value in (None, ()) else str(value)
