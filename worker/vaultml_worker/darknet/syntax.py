"""Darknet's dialect of INI files: sections repeat, blanks mean nothing, of a key given twice the first counts."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from vaultml_worker.darknet import keys
from vaultml_worker.records import InvalidInput

_SECTION = re.compile(r"\[(\w+)\](?:[#;].*|//.*)?")
_COMMENT = re.compile(r"#|;|//")


@dataclass(slots=True)
class Section:
    """One section: `values` are its options by key, `lines` their line numbers, both as they stand in the file."""

    kind: str
    line: int
    values: dict[str, str] = field(default_factory=dict)
    lines: dict[str, int] = field(default_factory=dict)
    title: str = ""

    def __post_init__(self) -> None:
        self.title = self.title or f"[{self.kind}]"

    def error(self, message: str, key: str | None = None) -> InvalidInput:
        """Return the error that names section and line."""
        return InvalidInput(f"{self.title}, line {self.lines.get(key or '', self.line)}: {message}")

    def text(self, key: str, default: str) -> str:
        """Return an option as it is, without blanks; Darknet reads a comment behind it as a part of it."""
        return self.values.get(key, default)

    def whole(self, key: str, default: int, least: int | None = None) -> int:
        """Return a whole number, at least `least`."""
        number = self._number(self.values.get(key, str(default)), key)
        if number != int(number) or (least is not None and number < least):
            raise self.error(f"{key} must be a whole number{'' if least is None else f' from {least}'}", key)
        return int(number)

    def real(self, key: str, default: float) -> float:
        """Return a number."""
        return self._number(self.values.get(key, str(default)), key)

    def floats(self, key: str) -> list[float]:
        """Return the numbers of a comma-separated list; empty when the key is missing."""
        listed = _COMMENT.split(self.values.get(key, ""))[0]
        return [self._number(part, key) for part in listed.split(",") if part]

    def ints(self, key: str) -> list[int]:
        """Return the numbers of a comma-separated list, cut to whole ones as Darknet does."""
        return [int(value) for value in self.floats(key)]

    def _number(self, given: str, key: str) -> float:
        text = _COMMENT.split(given)[0]
        try:
            number = float(text)
        except ValueError:
            number = float("nan")
        if not abs(number) < 1e9:
            raise self.error(f"{key}={given} is not a number", key)
        return number

    def ignored(self) -> Iterator[str]:
        """Check that each key is known; give a sentence for each that Darknet ignores because of its capital letters.

        Raises InvalidInput for a key that changes the network and is not supported, or that is not known.
        """
        read, only = keys.READ[self.kind], keys.ONLY[self.kind]
        known = read | keys.WITHOUT_EFFECT[self.kind]
        for key, value in self.values.items():
            if key in known:
                continue
            if key in only:
                if not _same(value, only[key]):
                    raise self.error(f"{key}={value} is not supported: only {key}={only[key]} is", key)
            elif key.lower() in known or key.lower() in only:
                if key.lower() in read | only.keys():
                    yield f"line {self.lines[key]}: Darknet ignores {key}, its keys have small letters: {key.lower()}"
            else:
                raise self.error(f"the key {key} is not known, and may change the network: remove it if not", key)


def sections(lines: Iterable[str]) -> Iterator[Section]:
    """Split a network description into its sections. Raises InvalidInput that names the line."""
    section: Section | None = None
    for number, given in enumerate(lines, 1):
        line = re.sub(r"\s", "", given)
        if not line or _COMMENT.match(line):
            continue
        if header := _SECTION.fullmatch(line):
            if section is not None:
                yield section
            section = Section(header[1].lower(), number)
        elif "=" in line and section is not None:
            key, _, value = line.partition("=")
            section.values.setdefault(key, value)
            section.lines.setdefault(key, number)
        elif line[0] == "[":
            raise InvalidInput(f"line {number}: {given.strip()[:40]!r} is not [section]")
        elif section is None:
            raise InvalidInput(f"line {number} comes before the section [net], with which a Darknet cfg begins")
        else:
            raise InvalidInput(f"line {number}: {given.strip()[:40]!r} is neither [section] nor key=value")
    if section is not None:
        yield section


def _same(value: str, neutral: str) -> bool:
    text = _COMMENT.split(value)[0]
    try:
        return float(text) == float(neutral)
    except ValueError:
        return text == neutral
