"""Kerberos Vault's HTTP API: fetching recordings, and whether that would work."""

import json
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal, NoReturn
from urllib.parse import urlsplit

import requests
import tenacity
from requests.adapters import HTTPAdapter
from requests.exceptions import ConnectionError as ConnectionFailed
from requests.exceptions import (
    ConnectTimeout,
    InvalidHeader,
    InvalidSchema,
    InvalidURL,
    MissingSchema,
    RequestException,
    SSLError,
    Timeout,
)

from vaultml_worker.records import Cause, Event, Finding, PermanentFailure, RetryableFailure, State, VaultAccess

ACCESS_KEY = "X-Kerberos-Storage-AccessKey"
SECRET_KEY = "X-Kerberos-Storage-SecretAccessKey"  # noqa: S105 - a header's name
FILE_NAME = "X-Kerberos-Storage-FileName"
PROVIDER = "X-Kerberos-Storage-Provider"

_MALFORMED = (InvalidURL, MissingSchema, InvalidSchema, InvalidHeader)
Download = Literal["blob", "signed-url"]
_CHUNK = 1 << 18
_PAGE = 512
"""Bytes that are enough to know a web page."""
_WRONG_KEYS = "check VAULT_ACCESS_KEY and VAULT_SECRET_KEY"
_REDIRECTED = "set VAULT_API_URL to the address it redirects to"
_NOT_A_VAULT = "correct VAULT_API_URL; newer Vaults need /api at its end"


class Vault:
    """Downloads recordings from the worker's own Vault, or from the one that an event names.

    `own` may be None (every event brings its credentials); `max_bytes` bounds one recording; `timeout` is seconds to
    connect and between two reads; `deadline` is seconds for one whole download. A failure that may pass is tried again
    with backoff and jitter until `stop` is set, or `attempts` times when that is given; for `stranger_patience` seconds
    where the event names its own Vault. `on_retry` hears of each.
    Thread-safe; errors name the call and the cause, never a body, a header or a signed URL.
    """

    def __init__(
        self,
        own: VaultAccess | None,
        *,
        download: Download = "blob",
        max_bytes: int = 256 << 20,
        timeout: float = 30.0,
        deadline: float = 600.0,
        connections: int = 8,
        attempts: int | None = None,
        stranger_patience: float = 900.0,
        max_wait: float = 30.0,
        stop: threading.Event | None = None,
        on_retry: Callable[[RetryableFailure, float], None] | None = None,
    ) -> None:
        self._own = own
        self._download = download
        self._max_bytes = max_bytes
        self._timeout = timeout
        self._deadline = deadline
        self._stranger_patience = stranger_patience
        self._session = _session()
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(pool_connections=4, pool_maxsize=connections, max_retries=0))
        self._accepted = False
        self._stop = stop = stop or threading.Event()
        stopped = tenacity.stop_when_event_set(stop)
        self._give_up = tenacity.stop_any(stopped, tenacity.stop_after_attempt(attempts)) if attempts else stopped
        self._retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(RetryableFailure),
            wait=tenacity.wait_random_exponential(multiplier=0.5, max=max_wait),
            stop=self._give_up,
            sleep=tenacity.sleep_using_event(stop),
            before_sleep=_telling(on_retry) if on_retry else None,
            reraise=True,
        )

    def fetch(self, event: Event) -> bytes:
        """The whole recording.

        Raises PermanentFailure (NOT_FOUND, REFUSED, UNAUTHORIZED for a message's own keys, TOO_LARGE, …), or the last
        RetryableFailure once stopped or out of attempts (network, 5xx, 429, our own keys refused).
        """
        access = event.access or self._own
        if access is None:
            raise PermanentFailure(
                Cause.NO_VAULT, "neither the event nor VAULT_API_URL, VAULT_ACCESS_KEY, VAULT_SECRET_KEY name a Vault"
            )
        get = self._blob if self._download == "blob" else self._by_signed_url
        if event.access is None:
            return self._retrying.copy()(get, access, event)
        # A Vault that only this event names must not hold a place for ever: four such events would stop a worker.
        patience = tenacity.stop_any(self._give_up, tenacity.stop_after_delay(self._stranger_patience))
        try:
            return self._retrying.copy(stop=patience)(get, access, event)
        except RetryableFailure as failure:
            if self._stop.is_set():
                raise
            raise PermanentFailure(failure.cause, failure.message) from None

    def close(self) -> None:
        """Close the pooled connections."""
        self._session.close()

    def _blob(self, access: VaultAccess, event: Event) -> bytes:
        with self._get(access, event, "/storage/blob") as response:
            return self._read(response, "GET /storage/blob")

    def _by_signed_url(self, access: VaultAccess, event: Event) -> bytes:
        with self._get(access, event, "/storage") as response:
            body = self._read(response, "GET /storage")
        call = "GET of the signed URL"
        try:
            url = str(json.loads(body)["data"])
        except (ValueError, KeyError, TypeError):
            raise RetryableFailure(Cause.UNAVAILABLE, "GET /storage gave no signed URL: is this a Vault?") from None
        with self._open(call, url, {}, redirects=True) as response:
            if response.status_code in (400, 401, 403):
                raise PermanentFailure(Cause.REFUSED, f"{call} was answered with {response.status_code}")
            _check(response, call, own=False)
            return self._read(response, call)

    @contextmanager
    def _get(self, access: VaultAccess, event: Event, path: str) -> Iterator[requests.Response]:
        headers = {
            ACCESS_KEY: access.access_key.encode(),
            SECRET_KEY: access.secret_key.encode(),
            FILE_NAME: event.key.encode(),
            PROVIDER: event.source.encode(),
        }
        # An event's own address is as confidential as its keys.
        call = f"GET {path} at {_shown(access.url) if event.access is None else 'the Vault that the event names'}"
        own = event.access is None
        with self._open(call, access.url.rstrip("/") + path, headers, redirects=False) as response:
            if own and response.status_code in (401, 403) and self._refuses_only_this(access):
                raise PermanentFailure(
                    Cause.UNAUTHORIZED,
                    f"{call} was answered with {response.status_code}, though our credentials are good: "
                    "the account may not use the provider that the event names",
                )
            self._accepted = self._accepted or (own and response.status_code in (200, 404, 410))
            _check(response, call, own=own)
            yield response

    def _refuses_only_this(self, access: VaultAccess) -> bool:
        """Whether our own credentials, which were accepted for other recordings, are good still.

        Vault answers 401 to wrong keys and to a provider that the account is not bound to. Wrong keys, or an account
        never bound, hold the whole queue; an event that names a foreign provider must not.
        """
        if not self._accepted:
            return False
        try:
            with _ping(self._session, access, self._timeout) as response:
                return response.status_code == 200
        except RequestException:
            return False

    @contextmanager
    def _open(
        self, call: str, url: str, headers: Mapping[str, bytes], *, redirects: bool
    ) -> Iterator[requests.Response]:
        try:
            with self._session.get(
                url, headers=headers, stream=True, timeout=self._timeout, allow_redirects=redirects
            ) as response:
                yield response
        except RequestException as error:
            _raise_for_network(error, call)

    def _read(self, response: requests.Response, call: str) -> bytes:
        """The body, bounded in bytes and time; old Vaults may gzip it, with or without saying so."""
        length = response.headers.get("Content-Length", "")
        if length.isdecimal() and int(length) > self._max_bytes:
            raise PermanentFailure(Cause.TOO_LARGE, self._too_large(call))
        end = time.monotonic() + self._deadline
        body = bytearray()
        for chunk in response.iter_content(_CHUNK):
            body += chunk
            if len(body) > self._max_bytes:
                raise PermanentFailure(Cause.TOO_LARGE, self._too_large(call))
            if time.monotonic() > end:
                raise PermanentFailure(Cause.TOO_SLOW, f"{call} did not end within {self._deadline:g} s")
        if body[:2] == b"\x1f\x8b":
            return self._gunzip(body, call)
        return bytes(body)

    def _gunzip(self, body: bytearray, call: str) -> bytes:
        unzip = zlib.decompressobj(wbits=31)
        try:
            plain = unzip.decompress(body, self._max_bytes + 1)
        except zlib.error:
            raise PermanentFailure(Cause.NOT_A_VIDEO, f"{call} gave a damaged gzip file") from None
        if len(plain) > self._max_bytes:
            raise PermanentFailure(Cause.TOO_LARGE, self._too_large(call))
        return plain

    def _too_large(self, call: str) -> str:
        return f"{call}: the recording is larger than RECORDING_MAX_BYTES ({self._max_bytes})"


def check(access: VaultAccess, timeout: float = 5.0) -> Finding:
    """Whether a Vault answers there and takes these keys; `timeout` is seconds to connect and for the answer."""
    shown = _shown(access.url)
    try:
        with _session() as session, _ping(session, access, timeout) as response:
            status = response.status_code
            page = status == 200 and next(response.iter_content(_PAGE), b"").lstrip().startswith(b"<")
    except RequestException as error:
        found = f"{shown} can't be reached: {_reason(error)}"
        return Finding("Vault", State.WRONG, found, "check VAULT_API_URL, and that Vault runs and is reached from here")
    if status == 200 and not page:
        return Finding("Vault", State.OK, f"{shown} answers, and takes the keys")
    if status in (401, 403):
        return Finding("Vault", State.WRONG, f"{shown} refuses the keys ({status})", _WRONG_KEYS)
    if 300 <= status < 400:
        return Finding("Vault", State.WRONG, f"{shown} answers with a redirect ({status})", _REDIRECTED)
    if _passes(status):
        return Finding("Vault", State.WRONG, f"{shown} answers {status}", "look at Vault's log and its storage")
    said = "with a web page" if page else str(status)
    return Finding("Vault", State.WRONG, f"{shown} is not a Vault, it answers {said}", _NOT_A_VAULT)


def _session() -> requests.Session:
    session = requests.Session()
    session.trust_env = False  # no .netrc credentials, no proxies that would see the keys
    return session


def _ping(session: requests.Session, access: VaultAccess, timeout: float) -> requests.Response:
    return session.post(
        f"{access.url.rstrip('/')}/ping",
        headers={ACCESS_KEY: access.access_key.encode(), SECRET_KEY: access.secret_key.encode()},
        timeout=timeout,
        allow_redirects=False,
        stream=True,
    )


def _check(response: requests.Response, call: str, *, own: bool) -> None:
    """Map a status to what it means, without looking at the body (Vault's error bodies echo the keys)."""
    status = response.status_code
    said = f"{call} was answered with {status}"
    if status == 200:
        return
    if status in (401, 403):
        if own:
            raise RetryableFailure(
                Cause.UNAUTHORIZED,
                f"{said}: {_WRONG_KEYS}, and that the account may use this provider",
            )
        raise PermanentFailure(Cause.UNAUTHORIZED, f"{said}: the event's own credentials are refused")
    if status in (404, 410):
        raise PermanentFailure(Cause.NOT_FOUND, f"{said}: the recording is gone")
    if _passes(status):
        raise RetryableFailure(Cause.UNAVAILABLE, f"{said}: Vault or its storage is unavailable")
    if 300 <= status < 400 and own:
        raise RetryableFailure(Cause.UNAVAILABLE, f"{said}: {_REDIRECTED}")
    raise PermanentFailure(Cause.REFUSED, said)


def _passes(status: int) -> bool:
    """Whether the same call may be answered better later."""
    return status >= 500 or status in (408, 425, 429)


def _raise_for_network(error: RequestException, call: str) -> NoReturn:
    if isinstance(error, _MALFORMED):
        raise PermanentFailure(Cause.REFUSED, f"{call} can't be made: {_reason(error)}") from None
    raise RetryableFailure(Cause.UNAVAILABLE, f"{call}: {_reason(error)}") from None


def _reason(error: RequestException) -> str:
    """The cause, by the exception's kind alone: its text may hold a signed URL."""
    for kind, reason in (
        (_MALFORMED, "its address or a header is malformed"),
        (SSLError, "no TLS, or a certificate that is not trusted"),
        (ConnectTimeout, "no connection in time"),
        (Timeout, "no answer in time"),
        (ConnectionFailed, "no connection, or it broke"),
    ):
        if isinstance(error, kind):
            return reason
    return "the transfer broke off"


def _shown(url: str) -> str:
    """The address without user, password, query."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''}{parts.path}"


def _telling(on_retry: Callable[[RetryableFailure, float], None]) -> Callable[[tenacity.RetryCallState], None]:
    def tell(state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, RetryableFailure):
            on_retry(error, state.upcoming_sleep)

    return tell
