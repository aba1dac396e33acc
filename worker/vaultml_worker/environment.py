"""Reading settings from environment variables, as shells, `.env` files, Secrets and Helm values deliver them.

What such tools add without meaning it is removed where that is harmless: white space, line ends, byte-order marks and
quotes around addresses, names, numbers and switches. Around a password or key it could be meant: it is refused by name.
"""

import re
from collections.abc import Iterator
from typing import Any, Literal, Self, TypeVar, get_args, get_origin

from pydantic import SecretStr, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from vaultml_common.vault import unusable

_AROUND = " \t\r\n\v\f\xa0\ufeff\u200b"
"""White space and invisible characters that stand around values."""
_FLOAT = re.compile(r"[0-9]+(\.[0-9]+)?[eE][+]?[0-9]+|[0-9]+\.0+")
"""How Helm writes a large whole number."""

Part = TypeVar("Part", bound="Environment")


class Environment(BaseSettings):
    """Settings of one part of the worker; an empty variable counts as absent."""

    model_config = SettingsConfigDict(env_ignore_empty=True, frozen=True, hide_input_in_errors=True, extra="ignore")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read arguments, then environment variables."""
        return init_settings, _Variables(settings_cls)

    @field_validator("*", mode="after")
    @classmethod
    def _usable_secret(cls, value: Any) -> Any:
        if isinstance(value, SecretStr) and value.get_secret_value():
            wrong = unusable(value.get_secret_value())
            if wrong is not None:
                raise PydanticCustomError("secret", "{wrong}", {"wrong": wrong})
        return value

    @model_validator(mode="after")
    def _belong_together(self) -> Self:
        if wrong := list(self.conflicts()):
            raise PydanticCustomError("together", "{problems}", {"problems": "\n  ".join(wrong)})
        return self

    def conflicts(self) -> Iterator[str]:
        """Yield what is wrong with variables that are right each by itself: `NAME, NAME: sentence`."""
        yield from ()

    @property
    def secrets(self) -> tuple[str, ...]:
        """The secret values, for masking them in the log."""
        values = (getattr(self, name) for name in type(self).model_fields)
        return tuple(v.get_secret_value() for v in values if isinstance(v, SecretStr) and v.get_secret_value())


class _Variables(EnvSettingsSource):
    """Environment variables without what was added around their values."""

    def __call__(self) -> dict[str, Any]:
        """Return the values by field."""
        fields = self.settings_cls.model_fields
        values = {
            name: _cleaned(value, fields[name]) if isinstance(value, str) and name in fields else value
            for name, value in super().__call__().items()
        }
        return {name: value for name, value in values.items() if value != ""}


def _cleaned(value: str, field: FieldInfo) -> str:
    if field.annotation is SecretStr:
        return value
    value = unquoted(value)
    choices = [str(choice) for choice in get_args(field.annotation)] if get_origin(field.annotation) is Literal else []
    for choice in choices:
        if choice.lower() == value.lower():
            return choice
    if field.annotation is int and _FLOAT.fullmatch(value) and float(value).is_integer():
        return str(int(float(value)))
    return value


def unquoted(value: str) -> str:
    """Return the text without white space and quotes around it."""
    value = value.strip(_AROUND)
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        value = value[1:-1].strip(_AROUND)
    return value


def split(value: Any) -> Any:
    """Return the parts of a comma-separated list."""
    return tuple(part for part in map(unquoted, value.split(",")) if part) if isinstance(value, str) else value


def examine(part: type[Part], **overrides: Any) -> tuple[Part, list[str]]:
    """Return the settings whatever they are, with stand-ins for wrong ones, and a line for each that is wrong.

    A line begins with the variable's name, or with names and commas, then a colon and what to do.
    """
    try:
        return part(**overrides), []
    except ValidationError as error:
        wrong = {str(item["loc"][0]): item for item in error.errors(include_url=False) if item["loc"]}
        lines = [f"{name.upper()}: {_sentence(item['msg'])}" for name, item in wrong.items()]
        conflicts = [item["msg"] for item in error.errors(include_url=False) if not item["loc"]]
    fields = part.model_fields
    stand_ins = overrides | {name: "stand-in" if fields[name].is_required() else fields[name].default for name in wrong}
    if wrong:
        # pydantic looks at conflicts between variables only once each is right: ask again with stand-ins for the wrong.
        try:
            part(**stand_ins)
        except ValidationError as error:
            conflicts = [item["msg"] for item in error.errors(include_url=False) if not item["loc"]]
    lines += [
        line
        for conflict in conflicts
        for line in conflict.split("\n  ")
        if not any(name.upper() in line.partition(":")[0] for name in wrong)
    ]
    return _each_alone(part)(**stand_ins), lines


def _each_alone(part: type[Part]) -> type[Part]:
    """Return the same settings, which need not belong together."""

    def conflicts(_self: Part) -> Iterator[str]:
        return iter(())

    return type(part.__name__, (part,), {"conflicts": conflicts, "__doc__": part.__doc__, "__module__": __name__})


def _sentence(message: str) -> str:
    if message == "Field required":
        return "missing: set it"
    return message[:1].lower() + message[1:] if message.startswith(("Input ", "String ", "Value ")) else message


def variables(part: type[Environment]) -> Iterator[tuple[str, str | None, bool, str]]:
    """Yield each variable: name, default as it would be written (None: required), whether it is secret, meaning."""
    for name, field in part.model_fields.items():
        default = field.default.get_secret_value() if isinstance(field.default, SecretStr) else field.default
        choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
        meaning = (field.description or "") + (f" One of {', '.join(choices)}." if choices else "")
        yield name.upper(), None if field.is_required() else _text(default), field.annotation is SecretStr, meaning


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value in (None, ()) else str(value)
