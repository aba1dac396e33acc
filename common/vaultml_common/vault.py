"""Kerberos Vault's HTTP API: the names of its headers, and what its answers mean to a client with keys of its own."""

from enum import Enum
from urllib.parse import urlsplit

ACCESS_KEY = "X-Kerberos-Storage-AccessKey"
SECRET_KEY = "X-Kerberos-Storage-SecretAccessKey"  # noqa: S105 - a header's name
FILE_NAME = "X-Kerberos-Storage-FileName"
PROVIDER = "X-Kerberos-Storage-Provider"

PEEK = 512
"""Bytes of a body that are enough to recognize text."""
_BASE64_ENCRYPTED = b"U2FsdGVkX1"
"""Begin of `Salted__` in base64: agents wrote encrypted recordings so for two months in 2023."""
_CONTROL = frozenset(range(32)) - frozenset(b"\t\n\f\r\x1b")


class Ping(Enum):
    """What an answer to `POST /ping` with our keys means."""

    OK = "answers, and takes the keys"
    KEYS_REFUSED = "refuses the keys"
    FAILING = "is failing"
    REDIRECT = "answers with a redirect"
    NOT_A_VAULT = "is not a Vault"


def judge_ping(status: int, start: bytes) -> Ping:
    """Return what the status and the first `PEEK` bytes of the answer to `POST /ping` mean."""
    if status in (401, 403):
        return Ping.KEYS_REFUSED
    if transient(status):
        return Ping.FAILING
    if 300 <= status < 400:
        return Ping.REDIRECT
    if status == 200 and not is_page(start):
        return Ping.OK
    return Ping.NOT_A_VAULT


def transient(status: int) -> bool:
    """Return True if the same request may be answered better later."""
    return status >= 500 or status in (408, 425, 429)


def is_page(start: bytes) -> bool:
    """Return True if a body that begins with `start` is a web page or XML, in whatever encoding."""
    return start.replace(b"\0", b"").lstrip(b"\xef\xbb\xbf\xfe\xff \t\r\n").startswith(b"<")


def is_recording(body: bytes) -> bool:
    """Return False if a body cannot be a recording: it is empty, or text (a web page, JSON, a sentence)."""
    start = bytes(body[:PEEK])
    if start.startswith(_BASE64_ENCRYPTED):
        return True
    if not start or is_page(start):
        return False
    return any(byte in _CONTROL for byte in start) or not _is_utf8(start)


def _is_utf8(start: bytes) -> bool:
    try:
        start.decode()
    except UnicodeDecodeError as error:
        return error.start >= len(start) - 3 and len(start) == PEEK  # a character that the cut divides
    return True


def unusable(value: str) -> str | None:
    """Return what is wrong with a key or password as people's tools deliver it, and how to mend it; None: nothing.

    Shells, `.env` files, Secrets and Helm values add what nobody meant: an HTTP header or a login would fail with it.
    """
    if not value.strip():
        return "is blank: give its value"
    if value.endswith(("\r", "\r\n")):
        return "ends with a carriage return: convert the file that it comes from to LF line ends (dos2unix)"
    if value.endswith("\n"):
        return "ends with a newline: create the Secret again without it (printf, not echo)"
    if value != value.strip():
        return "begins or ends with white space: remove it"
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        return (
            "is enclosed in quotes, which are passed on as a part of it: remove them (docker --env-file and "
            "Kubernetes keep quotes)"
        )
    if not value.isprintable():
        return "holds a control character or an invisible one: write it again"
    return None


def shown(url: str) -> str:
    """Return the address without user, password, query and fragment; empty when it is none."""
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return ""
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return ""
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}{port}{parts.path}"
