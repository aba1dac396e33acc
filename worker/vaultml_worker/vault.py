"""Downloading recordings from Kerberos Vault.

A refusal is believed only of a Vault that works: before a recording is given up, the worker asks its own Vault
something that must succeed with its keys. An answer that cannot be a recording counts as a refusal.
"""

import io
import json
import re
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import requests
import tenacity

from vaultml_common.vault import ACCESS_KEY, FILE_NAME, PROVIDER, SECRET_KEY, is_recording, shown, transient
from vaultml_worker import transport, vault_check
from vaultml_worker.failures import Cause, Failure
from vaultml_worker.records import Event, VaultAccess
from vaultml_worker.retries import GiveUp, Retries
from vaultml_worker.transport import Transport

Download = Literal["blob", "signed-url"]
_CHUNK = 1 << 18
_ERROR_BYTES = 4096
"""So much of a storage's error answer is read to find its code."""
_CODE = re.compile(rb"<Code>(\w{1,64})</Code>")
_MISSING_KEY = frozenset({"NoSuchKey", "NoSuchObject", "BlobNotFound", "ObjectNotFound", "NoSuchVersion"})
"""Codes of S3, Google, Azure and Swift that mean: this object is missing, while the storage itself works."""
_VERIFIED_FIRST = (Cause.NOT_FOUND, Cause.REFUSED)
"""Before one of these is believed, our own Vault must prove that it works."""
_OF_ITS_VAULT = (Cause.UNAVAILABLE, Cause.NOT_A_VAULT, Cause.STORAGE_REFUSED)
"""Failures that can be those of a Vault that only one event names; a missing CA or a wrong proxy is ours."""


class Vault:
    """Downloads recordings from the worker's own Vault, or from the one that an event names.

    `own` may be None (every event brings its credentials); `max_bytes` bounds one recording; `timeout` is seconds to
    connect and between two reads; `deadline` is seconds for one whole download. A transient failure is retried as
    `retries` says; for `event_vault_patience` seconds where the event names its own Vault.
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
        http: Transport | None = None,
        event_vault_patience: float = 900.0,
        retries: Retries | None = None,
    ) -> None:
        self._own = own
        self._download = download
        self._max_bytes = max_bytes
        self._timeout = timeout
        self._deadline = deadline
        self._event_vault_patience = event_vault_patience
        self._http = http or Transport()
        self._accepted: set[str] = set()
        """Providers of which our own Vault has given us a recording."""
        self._succeeded = 0.0
        """When the last download of anything ended (monotonic seconds)."""
        self._others_bring_credentials = False
        self._retries = retries or Retries()

    def fetch(self, event: Event) -> bytes:
        """Return the whole recording.

        Raises the permanent Failure that the recording or the event has, or the last transient one once stopped or
        out of attempts.
        """
        give_up = None
        if event.access is not None:
            self._others_bring_credentials = True
            give_up = self._gives_up_event_vault(time.monotonic())
        try:
            body = self._retries.call(self._fetch, event, give_up=give_up)
        except Failure as failure:
            if event.access is None or failure.cause not in _OF_ITS_VAULT or self._retries.stop.is_set():
                raise
            raise Failure(Cause.EVENT_VAULT_FAILED, failure.message) from None
        self._succeeded = time.monotonic()
        return body

    def _gives_up_event_vault(self, began: float) -> GiveUp:
        """Return what ends the retries at a Vault that only one event names.

        It must not hold up the worker indefinitely, while others work: its own failure is told from one of ours (our
        network, our proxy) by what else was downloaded since `began`.
        """

        def give_up(state: tenacity.RetryCallState) -> bool:
            error = state.outcome.exception() if state.outcome else None
            of_its_vault = isinstance(error, Failure) and error.cause in _OF_ITS_VAULT
            late = time.monotonic() - began > self._event_vault_patience
            return of_its_vault and late and self._succeeded > began

        return give_up

    def close(self) -> None:
        """Close the pooled connections."""
        self._http.close()

    def _fetch(self, event: Event) -> bytes:
        """One try."""
        get = self._blob if self._download == "blob" else self._by_signed_url
        if event.access is not None:
            return get(event.access, event)
        if self._own is None:
            # Where others bring their credentials it is this event's fault; until one has, it may well be ours.
            cause = Cause.NO_CREDENTIALS if self._others_bring_credentials else Cause.NO_VAULT
            raise Failure(cause, "neither the event nor VAULT_API_URL names a Vault")
        try:
            body = get(self._own, event)
        except Failure as failure:
            if failure.cause in _VERIFIED_FIRST:
                # Who answers everything with 200 doesn't say 404.
                self._verify(self._own, thorough=failure.cause is not Cause.NOT_FOUND)
            raise
        if is_recording(body):
            self._accepted.add(event.source)
        else:
            self._verify(self._own)
        return body

    def _verify(self, own: VaultAccess, *, thorough: bool = True) -> None:
        """Raise the failure that our own Vault has; return when it is a Vault that takes our keys."""
        trouble = vault_check.trouble(self._http, own, self._timeout, thorough=thorough)
        if trouble is not None:
            raise trouble

    def _blob(self, access: VaultAccess, event: Event) -> bytes:
        with self._get(access, event, "/storage/blob") as response:
            return self._read(response, "GET /storage/blob")

    def _by_signed_url(self, access: VaultAccess, event: Event) -> bytes:
        with self._get(access, event, "/storage") as response:
            answer = self._read(response, "GET /storage")
        try:
            url = str(json.loads(answer)["data"])
        except (ValueError, KeyError, TypeError):
            raise Failure(Cause.NOT_A_VAULT, "GET /storage gave no signed URL: is this a Vault?") from None
        call = "GET of the signed URL"
        if not transport.is_address(url):
            raise Failure(Cause.STORAGE_REFUSED, "GET /storage gave a signed URL that is no http(s) address")
        try:
            with self._http.storage(url, self._timeout) as response:
                refusal = _storage_refusal(response, call)
                body = b"" if refusal else self._read(response, call)
        except transport.ERRORS as error:
            raise transport.failure(error, call, transport.STORAGE_VARIABLES) from None
        if refusal is None:
            if is_recording(body):
                return body
            refusal = Failure(Cause.STORAGE_REFUSED, f"{call} was answered with text or nothing, not with a recording")
        if refusal.cause is Cause.STORAGE_REFUSED:
            # Only Vault itself can tell whether the recording is missing or bad, or its storage refuses everybody.
            seen = self._blob(access, event)
            if not is_recording(seen):
                return seen
        raise refusal

    @contextmanager
    def _get(self, access: VaultAccess, event: Event, path: str) -> Iterator[requests.Response]:
        headers = {
            ACCESS_KEY: access.access_key.encode(),
            SECRET_KEY: access.secret_key.encode(),
            FILE_NAME: event.key.encode(),
            PROVIDER: event.source.encode(),
        }
        own = event.access is None
        # An event's own address is as confidential as its keys.
        call = f"GET {path} at {shown(access.url) if own else 'the Vault that the event names'}"
        try:
            with self._http.vault("GET", access.url.rstrip("/") + path, headers, self._timeout) as response:
                if response.status_code != 200:
                    raise self._refusal(access, event, response.status_code, call)
                yield response
        except transport.ERRORS as error:
            failure = transport.failure(error, call, transport.VAULT_VARIABLES)
            if failure.cause is Cause.BAD_SETTING and not own and not transport.is_address(access.url):
                failure = Failure(Cause.EVENT_VAULT_FAILED, f"{call}: its address is malformed")
            raise failure from None

    def _refusal(self, access: VaultAccess, event: Event, status: int, call: str) -> Failure:
        """Return what a status means, without looking at the body: Vault's error bodies echo the keys."""
        said, own = f"{call} was answered with {status}", event.access is None
        if status in (401, 403):
            if not own:
                return Failure(Cause.EVENT_UNAUTHORIZED, f"{said}: the event's own credentials are refused")
            # Vault answers 401 to wrong keys and to a provider that the account is not bound to. Wrong keys, or a
            # binding that is missing or was lost, hold the queue; an event that names a foreign provider must not.
            foreign = event.source not in self._accepted and self._accepted
            if foreign and vault_check.trouble(self._http, access, self._timeout, thorough=False) is None:
                return Failure(
                    Cause.PROVIDER_REFUSED,
                    f"{said}, while our keys work: the account may not use the provider that the event names",
                )
            return Failure(Cause.UNAUTHORIZED, said)
        if status in (404, 410):
            return Failure(Cause.NOT_FOUND, f"{said}: the recording is gone")
        if transient(status):
            return Failure(Cause.UNAVAILABLE, f"{said}: Vault or its storage is unavailable")
        if 300 <= status < 400 and own:
            return Failure(Cause.NOT_A_VAULT, f"{said}: set VAULT_API_URL to the address that it redirects to")
        return Failure(Cause.REFUSED, said)

    def _read(self, response: requests.Response, call: str) -> bytes:
        """Return the body, bounded in bytes and time; old Vaults may gzip it, with or without saying so."""
        length = response.headers.get("Content-Length", "")
        if length.isdecimal() and int(length) > self._max_bytes:
            raise self._too_large(call)
        end = time.monotonic() + self._deadline
        gathered = io.BytesIO()  # pieces that are joined at the end take twice the memory, and with it the time
        for chunk in _chunks(response):
            gathered.write(chunk)
            if gathered.tell() > self._max_bytes:
                raise self._too_large(call)
            if time.monotonic() > end:
                raise Failure(Cause.UNAVAILABLE, f"{call} did not end within {self._deadline:g} s")
        body = gathered.getvalue()
        return self._gunzip(body, call) if body.startswith(b"\x1f\x8b") else body

    def _gunzip(self, body: bytes, call: str) -> bytes:
        unzip = zlib.decompressobj(wbits=31)
        try:
            plain = unzip.decompress(body, self._max_bytes + 1)
        except zlib.error:
            raise Failure(Cause.NOT_A_VIDEO, f"{call} gave a damaged gzip file") from None
        if len(plain) > self._max_bytes:
            raise self._too_large(call)
        return plain

    def _too_large(self, call: str) -> Failure:
        return Failure(Cause.TOO_LARGE, f"{call}: the recording is larger than RECORDING_MAX_BYTES ({self._max_bytes})")


def _chunks(response: requests.Response) -> Iterator[bytes]:
    """Yield the body in pieces; one that is gzipped comes as it is: its beginning says so.

    Reading it where nothing is decoded takes a third of the CPU time of `iter_content`.
    """
    if response.headers.get("Content-Encoding", "identity") not in ("identity", "gzip"):
        yield from response.iter_content(_CHUNK)
        return
    # What has come so far, however little: a server that drips must not outlast the deadline.
    while chunk := response.raw.read1(_CHUNK, decode_content=False):
        yield chunk


def _storage_refusal(response: requests.Response, call: str) -> Failure | None:
    """Return the failure that a storage's answer to a signed URL is; None when it answers with an object."""
    status = response.status_code
    if status == 200:
        return None
    said = f"{call} was answered with {status}"
    if transient(status):
        return Failure(Cause.UNAVAILABLE, f"{said}: the storage is unavailable")
    start = next(response.iter_content(_ERROR_BYTES), b"")
    code = _CODE.search(start)
    named = code[1].decode() if code else response.headers.get("x-ms-error-code", "")
    if status in (404, 410) and named in _MISSING_KEY:
        return Failure(Cause.NOT_FOUND, f"{said} ({named}): the recording is gone")
    return Failure(Cause.STORAGE_REFUSED, said + (f" ({named})" if re.fullmatch(r"\w{1,64}", named) else ""))
