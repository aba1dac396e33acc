"""Text files as editors and trainers on any system leave them: encodings, byte-order marks, line ends, Ctrl-Z."""

import codecs
import re
from pathlib import Path

from vaultml_worker.records import InvalidInput

_LARGEST = 16 << 20
"""Bytes of the largest file that is taken for text."""
_BYTE_ORDER_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))


def read_lines(path: Path, meaning: str) -> list[str]:
    """Return the lines of a text file without their ends; `meaning` is what the file should be, for the error.

    UTF-8, UTF-16 with a byte-order mark and, where it is neither, Windows-1252 (Latin-1 in what both define).
    Raises InvalidInput for a file that can't be read, or that is not text.
    """
    try:
        if path.is_file() and path.stat().st_size > _LARGEST:
            raise InvalidInput(f"{path}: is too large to be {meaning}")
        body = path.read_bytes()
    except OSError as error:
        raise InvalidInput(f"{path}: can't be read as {meaning} ({error.strerror})") from None
    text = _decode(body)
    if "\0" in text:
        raise InvalidInput(f"{path}: is not {meaning} but a binary file")
    return re.split(r"\r\n|\r|\n", re.sub(r"\x1a\s*\Z", "", text))


def _decode(body: bytes) -> str:
    for mark, encoding in _BYTE_ORDER_MARKS:
        if body.startswith(mark):
            return body.removeprefix(mark).decode(encoding, errors="replace")
    for encoding in ("utf-8", "cp1252"):
        try:
            return body.decode(encoding)
        except UnicodeDecodeError:
            continue
    return body.decode("latin-1")
