"""Why a recording has no result: one table from cause to permanence, fault, meaning and advice.

Every place that fails names a cause of this table. What follows (retry and hold, or dead letter) is decided by the
table alone, so that a mistake in our own configuration can never be taken for a property of a recording.
docs/dead-letters.md is generated from it.
"""

from dataclasses import dataclass
from enum import StrEnum


class Fault(StrEnum):
    """Who can mend a failure."""

    OURS = "ours"
    """The installation: our settings, or a service that they name."""
    EVENT = "the event's"
    RECORDING = "the recording's"
    BUG = "a bug of the worker"


class Cause(StrEnum):
    """Why a recording has no result: the `cause` of metrics, logs and dead letters."""

    UNAVAILABLE = "unavailable"
    TLS_FAILED = "tls-failed"
    UNAUTHORIZED = "unauthorized"
    NOT_A_VAULT = "not-a-vault"
    STORAGE_REFUSED = "storage-refused"
    BAD_SETTING = "bad-setting"
    NO_VAULT = "no-vault"
    DECODER_UNAVAILABLE = "decoder-unavailable"

    BAD_EVENT = "bad-event"
    NO_CREDENTIALS = "no-credentials"
    EVENT_UNAUTHORIZED = "event-unauthorized"
    EVENT_VAULT_FAILED = "event-vault-failed"
    PROVIDER_REFUSED = "provider-refused"

    NOT_FOUND = "not-found"
    REFUSED = "refused"
    TOO_LARGE = "too-large"
    ENCRYPTED = "encrypted"
    EMPTY = "empty"
    NOT_A_VIDEO = "not-a-video"
    NO_VIDEO_STREAM = "no-video-stream"
    NO_FRAMES = "no-frames"
    TOO_MANY_PIXELS = "too-many-pixels"
    DECODER_CRASHED = "decoder-crashed"
    DECODER_TIMEOUT = "decoder-timeout"
    DECODER_MEMORY = "decoder-memory"
    RESULT_TOO_LARGE = "result-too-large"

    INTERNAL = "internal"

    @property
    def permanent(self) -> bool:
        """True if a retry would fail again: the message becomes a dead letter. False: it is held and retried."""
        return TABLE[self].permanent

    @property
    def advice(self) -> str:
        """What to do, without the subject; empty where there is nothing to do."""
        return TABLE[self].advice


@dataclass(frozen=True, slots=True)
class Entry:
    """What a cause means."""

    permanent: bool
    fault: Fault
    meaning: str
    advice: str = ""


def _transient(meaning: str, advice: str) -> Entry:
    return Entry(permanent=False, fault=Fault.OURS, meaning=meaning, advice=advice)


def _event(meaning: str, advice: str) -> Entry:
    return Entry(permanent=True, fault=Fault.EVENT, meaning=meaning, advice=advice)


def _recording(meaning: str, advice: str = "") -> Entry:
    return Entry(permanent=True, fault=Fault.RECORDING, meaning=meaning, advice=advice)


TABLE: dict[Cause, Entry] = {
    Cause.UNAVAILABLE: _transient(
        "Vault, or the storage behind a signed URL, is not reachable or answers 408, 425, 429 or 5xx",
        "check that Vault and its storage run, that VAULT_API_URL is right, and network policies; HTTPS_PROXY and "
        "HTTP_PROXY are used for signed URLs only, VAULT_PROXY for Vault",
    ),
    Cause.TLS_FAILED: _transient(
        "the certificate of Vault, or of the storage, is not trusted, or there is no TLS at that address",
        "give the CA that signed the certificate in VAULT_SSL_CA (a PEM file; SSL_CERT_FILE and REQUESTS_CA_BUNDLE "
        "are honoured too), and use a host name that is in the certificate",
    ),
    Cause.UNAUTHORIZED: _transient(
        "Vault refuses our own keys",
        "check VAULT_ACCESS_KEY and VAULT_SECRET_KEY, and that the account may use this provider",
    ),
    Cause.NOT_A_VAULT: _transient(
        "what answers at VAULT_API_URL is not a Vault: a web page, a redirect, a gateway",
        "correct VAULT_API_URL; newer Vaults need /api at its end",
    ),
    Cause.STORAGE_REFUSED: _transient(
        "the storage behind a signed URL refuses every download, or answers with something else than a recording",
        "check the storage provider in Vault (its keys, its bucket, the clocks), or set VAULT_DOWNLOAD=blob",
    ),
    Cause.BAD_SETTING: _transient(
        "a request cannot be built from our settings", "correct the variable that the message names"
    ),
    Cause.NO_VAULT: _transient(
        "neither the worker nor the event names a Vault, and no event has brought its own so far",
        "set VAULT_API_URL, VAULT_ACCESS_KEY and VAULT_SECRET_KEY",
    ),
    Cause.DECODER_UNAVAILABLE: _transient(
        "no decoder process can be started, the system kills it (SIGKILL), or there is no memory for the recording",
        "raise the container's memory limit, or lower RECORDINGS_IN_FLIGHT; check its limit of processes",
    ),
    Cause.BAD_EVENT: _event(
        "the message is not JSON, or has no `source` or `payload.key`", "check who writes to the queue"
    ),
    Cause.NO_CREDENTIALS: _event(
        "the event names no Vault, although others bring their own, and the worker has none",
        "set VAULT_API_URL, VAULT_ACCESS_KEY and VAULT_SECRET_KEY if such events are to be processed",
    ),
    Cause.EVENT_UNAUTHORIZED: _event("the credentials that the event brings are refused", "check who writes the event"),
    Cause.EVENT_VAULT_FAILED: _event(
        "the Vault that only this event names could not be used for 15 minutes, while other downloads succeeded",
        "check the address in the event",
    ),
    Cause.PROVIDER_REFUSED: _event(
        "the account may not use the provider (`source`) that the event names, while our keys work otherwise",
        "bind the account to the provider in Vault",
    ),
    Cause.NOT_FOUND: _recording(
        "Vault has no such recording (404), while our keys work",
        "it was removed before its turn: run more workers, or keep recordings longer",
    ),
    Cause.REFUSED: _recording(
        "Vault answers this request, and only this one, with an error status", "look at Vault's log"
    ),
    Cause.TOO_LARGE: _recording("over RECORDING_MAX_BYTES or RECORDING_MAX_FRAMES", "raise the limit"),
    Cause.ENCRYPTED: _recording("the Agent encrypted it", "not supported by this version"),
    Cause.EMPTY: _recording("it has no bytes"),
    Cause.NOT_A_VIDEO: _recording("it is neither a video nor a picture, or it is damaged at its beginning"),
    Cause.NO_VIDEO_STREAM: _recording("the file has no video stream"),
    Cause.NO_FRAMES: _recording("none of its frames can be decoded"),
    Cause.TOO_MANY_PIXELS: _recording("a frame exceeds RECORDING_MAX_PIXELS", "raise the limit"),
    Cause.DECODER_CRASHED: _recording(
        "decoding ended its process, twice", "keep the file: it may be an attack; report it"
    ),
    Cause.DECODER_TIMEOUT: _recording("decoding took longer than DECODER_SECONDS, twice", "raise the limit"),
    Cause.DECODER_MEMORY: _recording("decoding needs more memory than DECODER_BYTES", "raise the limit"),
    Cause.RESULT_TOO_LARGE: _recording(
        "the result is larger than its queue takes",
        "raise the queue's limit (max.message.bytes of a Kafka topic), or sample fewer frames",
    ),
    Cause.INTERNAL: Entry(
        permanent=True,
        fault=Fault.BUG,
        meaning="the worker failed in a way that nobody foresaw",
        advice="please report it with the log",
    ),
}


class Failure(Exception):  # noqa: N818 - a failure to process a recording, which the worker expects and handles
    """A recording has no result. `message` is one sentence without secrets; `cause` says what follows from it."""

    def __init__(self, cause: Cause, message: str) -> None:
        super().__init__(cause, message)
        self.cause = cause
        self.message = message

    def __str__(self) -> str:
        return f"{self.cause}: {self.message}"


def reference() -> str:
    """Return docs/dead-letters.md."""
    return _PAGE.format(permanent=_rows(permanent=True), transient=_rows(permanent=False))


def _rows(*, permanent: bool) -> str:
    return "\n".join(
        f"| `{cause}` | {entry.fault} | {entry.meaning} | {entry.advice} |"
        for cause, entry in TABLE.items()
        if entry.permanent is permanent
    )


_PAGE = """# Dead letters and held messages

Written by `make docs` from `worker/vaultml_worker/failures.py`.

## Permanent failures: dead letters

A message whose recording can never be processed becomes a dead letter.
It goes to `<QUEUE_TARGET>.dlq`, or to `<QUEUE_NAME>.dlq` without a target.
It holds the original bytes, less credentials and signed URLs.
Its headers are `vaultml-cause`, `vaultml-error` (a sentence), and where it came from:
`vaultml-topic`, `vaultml-partition` and `vaultml-offset`.
Where the topic is missing and the user may create it, the worker does.

| cause | fault | meaning | what to do |
| --- | --- | --- | --- |
{permanent}

The limits `RECORDING_MAX_BYTES`, `RECORDING_MAX_PIXELS`, `RECORDING_MAX_FRAMES`, `DECODER_SECONDS` and `DECODER_BYTES`
protect the worker: what exceeds one of them becomes a dead letter by design.

Truncated or damaged recordings that still give frames are no dead letters.
Their results say `"truncated": true` or `"corrupt": true`.

## Transient failures: held messages

A failure of the installation is never permanent for a recording.
The message keeps its place and is retried with backoff, at most 30 s apart.
Nothing is acknowledged and nothing is lost.
The log says what to do, `vaultml_held_recordings` counts the messages by cause, and `/readyz` stays as it is.
When the cause is gone, work goes on automatically.

Before the worker believes its own Vault that a recording is missing (404), refused (another 4xx, an odd 2xx) or no
recording at all (text, nothing), it asks Vault something that must succeed with its own keys (`POST /ping`), and makes
sure that it is a Vault that answers.

| cause | fault | meaning | what to do |
| --- | --- | --- | --- |
{transient}
"""
