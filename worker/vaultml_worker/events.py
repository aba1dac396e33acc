"""Events as Vault publishes them: reading, and taking credentials out of them."""

import json
import re
from collections.abc import Mapping
from typing import Any, NoReturn
from urllib.parse import urlsplit

from vaultml_common.redaction import MASK, is_signed_url, mask_text
from vaultml_worker.failures import Cause, Failure
from vaultml_worker.recording_names import RecordingName, parse_name
from vaultml_worker.records import Event, VaultAccess

_SECRET_KEY = re.compile(r"storage_|(?:pre)?signed_?url$", re.IGNORECASE)
_PRIVATE_KEY = re.compile(r"public_?key$|product_?id$", re.IGNORECASE)
# A storage_* or signed-URL key with a list or an object, whose end can't be told in a damaged event.
_SECRET_GROUP = re.compile(rb"""(?:storage_\w{0,64}+|signed_?urls?)\\{0,16}+["']?\s*+[:=]\s*+[\[{]""", re.IGNORECASE)


def parse(body: bytes) -> Event:
    """Read one event.

    Raises Failure (BAD_EVENT) with a sentence that says what is wrong; never quotes the event.
    Source of the fields: docs/events.md.
    """
    document = _load(body)
    payload = document.get("payload")
    if not isinstance(payload, dict):
        _bad("payload must be an object")
    key = _header_text(payload.get("key"), "payload.key")
    source = _header_text(document.get("source"), "source")
    metadata = payload.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    name = parse_name(key)
    size = payload.get("fileSize")
    return Event(
        document=document,
        key=key,
        source=source,
        camera=_camera(metadata, payload, name),
        timestamp=_timestamp(metadata, payload, name, document),
        file_size=size if isinstance(size, int) and not isinstance(size, bool) and size > 0 else None,
        access=_access(document.get("data")),
    )


_NUMBERS = frozenset({int, float, bool, type(None)})
"""Types of values that hide no text: a result has hundreds of them."""


def scrub(value: Any) -> Any:
    """The same JSON value without `storage_*` values and signed URLs, wherever they stand.

    Entries that hold one are left out of objects and lists; inside longer text only the secret is replaced.
    """
    secrets = _credential_values(value)
    return _without(value, secrets)


def mask(value: Any) -> Any:
    """The same JSON value for the log: credentials and public keys replaced by `***`."""
    return _masked(value, _credential_values(value))


def _masked(value: Any, secrets: frozenset[str]) -> Any:
    if isinstance(value, dict):
        return {
            _without(key, secrets): MASK
            if _SECRET_KEY.match(key) or _PRIVATE_KEY.match(key)
            else _masked(item, secrets)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [item if type(item) in _NUMBERS else _masked(item, secrets) for item in value]
    return value if type(value) in _NUMBERS else _without(value, secrets)


def scrub_bytes(body: bytes) -> bytes:
    """The original bytes of an event, whatever they are, without credentials.

    Untouched when there is nothing to hide; otherwise only the values are replaced by `***`. Where a credential hides
    in a form that can't be cut out in place (escaped keys, nested values), a JSON event is written anew without it.
    """
    text = mask_text(body.decode("latin-1"))
    masked = text.encode("latin-1")
    try:
        document = _load(masked)
    except Failure:
        # Not JSON: UTF-16 or escapes could still hide a key, so such bodies are withheld.
        plain = masked.replace(b"\0", b"")
        flat = re.sub(rb"\\u00([0-9a-fA-F]{2})", lambda match: bytes([int(match[1], 16)]), plain)
        hidden = flat != masked and mask_text(flat.decode("latin-1")) != flat.decode("latin-1")
        if hidden or _SECRET_GROUP.search(flat):
            return b"withheld: credentials in a damaged event"
        return masked
    original = _credential_values(_try_load(body))
    clean = _without(_blank_masked(document), original)
    return masked if clean == _blank_masked(document) else json.dumps(clean).encode()


def _load(body: bytes) -> dict[str, Any]:
    try:
        document = json.loads(body.decode("utf-8-sig"), parse_constant=_reject_constant)
    except UnicodeDecodeError:
        _bad("the message is not UTF-8")
    except RecursionError:
        _bad("the JSON is nested too deeply")
    except ValueError as error:
        where = f" at line {error.lineno} column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        _bad(f"the message is not JSON{where}")
    if not isinstance(document, dict):
        _bad("the message must be a JSON object")
    return document


def _try_load(body: bytes) -> Any:
    try:
        return _load(body)
    except Failure:
        return None


def _reject_constant(name: str) -> NoReturn:
    raise ValueError(name)


def _bad(message: str) -> NoReturn:
    raise Failure(Cause.BAD_EVENT, message) from None


def _header_text(value: Any, field: str) -> str:
    """Keys and providers travel as HTTP headers: text without control characters or outer spaces."""
    if not isinstance(value, str) or not value:
        _bad(f"{field} must be a text")
    try:
        value.encode()
    except UnicodeEncodeError:
        _bad(f"{field} is not valid Unicode")
    if value != value.strip() or any(ord(letter) < 32 or ord(letter) == 127 for letter in value) or len(value) > 4096:
        _bad(f"{field} can't be sent to a Vault: control characters, outer spaces or over 4096 letters")
    return value


def _camera(metadata: Mapping[str, Any], payload: Mapping[str, Any], name: RecordingName | None) -> str | None:
    """Return the camera's name: from the metadata, else the device's name, else the file name."""
    given = metadata.get("event-instancename"), payload.get("deviceName"), name.camera if name else None
    return next((text.strip() for text in given if isinstance(text, str) and text.strip()), None)


def _timestamp(
    metadata: Mapping[str, Any], payload: Mapping[str, Any], name: RecordingName | None, document: Mapping[str, Any]
) -> float | None:
    """Return seconds since the epoch: from the metadata, else the payload, the file name, the event's date.

    Metadata and payload have whole seconds; the file name adds the fraction where it means the same second.
    """
    sources = metadata.get("event-timestamp"), payload.get("timestamp"), name.timestamp if name else None
    for value in (*sources, document.get("date")):
        try:
            seconds = float(value) if isinstance(value, str | int | float) else 0.0
        except (ValueError, OverflowError):
            continue
        if 0 < seconds < 1e11:
            return name.timestamp if name is not None and name.seconds == seconds else seconds
    return None


def _access(data: Any) -> VaultAccess | None:
    if not isinstance(data, dict):
        return None
    given = {name: data.get(f"storage_{name}") for name in ("uri", "access_key", "secret")}
    if not any(given.values()):
        return None
    # Our own keys never go to an address that a message names.
    if not all(isinstance(value, str) and value for value in given.values()):
        _bad("data must carry storage_uri, storage_access_key and storage_secret together")
    uri = str(given["uri"])
    try:
        valid = urlsplit(uri).scheme in ("http", "https") and bool(urlsplit(uri).hostname)
    except ValueError:
        valid = False
    if not valid:
        _bad("data.storage_uri must be an http(s) address")
    access, secret = (_header_text(given[name], f"data.storage_{name}") for name in ("access_key", "secret"))
    return VaultAccess(uri, access, secret)


def _credential_values(value: Any) -> frozenset[str]:
    """The texts under `storage_*` keys that are secrets by themselves (addresses are not)."""
    found: set[str] = set()
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            for key, inner in item.items():
                if _SECRET_KEY.match(key) and isinstance(inner, str) and len(inner) >= 6 and "://" not in inner:
                    found.add(inner)
            stack.extend(inner for inner in item.values() if isinstance(inner, dict | list))
        elif isinstance(item, list):
            stack.extend(inner for inner in item if type(inner) not in _NUMBERS)
    return frozenset(found - {MASK})


def _without(value: Any, secrets: frozenset[str]) -> Any:
    if isinstance(value, dict):
        return {
            _without(key, secrets): _without(item, secrets)
            for key, item in value.items()
            if not (_SECRET_KEY.match(key) or _is_secret(item, secrets))
        }
    if isinstance(value, list):
        return [
            item if type(item) in _NUMBERS else _without(item, secrets)
            for item in value
            if not _is_secret(item, secrets)
        ]
    if isinstance(value, str):
        for secret in secrets:
            value = value.replace(secret, MASK)
        return mask_text(value)
    return value


def _is_secret(value: Any, secrets: frozenset[str]) -> bool:
    return isinstance(value, str) and (value in secrets or is_signed_url(value))


def _blank_masked(value: Any) -> Any:
    """The document without entries that are already masked, to see whether anything else must go."""
    if isinstance(value, dict):
        return {
            key: _blank_masked(item) for key, item in value.items() if not (_SECRET_KEY.match(key) and item == MASK)
        }
    return [_blank_masked(item) for item in value] if isinstance(value, list) else value
