"""The check of the worker's own Vault: a Vault answers at its address, and takes the keys."""

from vaultml_common.vault import ACCESS_KEY, FILE_NAME, PEEK, PROVIDER, SECRET_KEY, Ping, judge_ping, shown
from vaultml_worker import transport
from vaultml_worker.failures import Cause, Failure
from vaultml_worker.records import Finding, State, VaultAccess
from vaultml_worker.transport import Transport

_MISSING_RECORDING = "vaultml/no-such-recording.mp4"
"""A recording that no Vault has: whoever has it answers everything."""


def check(access: VaultAccess, http: Transport | None = None, timeout: float = 5.0) -> Finding:
    """Return whether a Vault answers there and takes these keys; `timeout` is seconds to connect and per answer."""
    own = http or Transport()
    try:
        wrong = trouble(own, access, timeout)
    finally:
        if http is None:
            own.close()
    if wrong is None:
        return Finding("Vault", State.OK, f"{shown(access.url)} answers, and takes the keys")
    return Finding("Vault", State.WRONG, wrong.message, wrong.cause.advice)


def trouble(http: Transport, access: VaultAccess, timeout: float, *, thorough: bool = True) -> Failure | None:
    """Return what is wrong with our own Vault, always a transient failure; None when it works.

    Asks `POST /ping` with our keys, then, if `thorough`, for a recording that cannot exist: a web server that answers
    everything with 200 is no Vault. Follows no redirect, and repeats nothing of an answer: Vault's error bodies echo
    the keys.
    """
    url, where = access.url.rstrip("/"), shown(access.url)
    keys = {ACCESS_KEY: access.access_key.encode(), SECRET_KEY: access.secret_key.encode()}
    call = f"POST /ping at {where}"
    try:
        with http.vault("POST", f"{url}/ping", keys, timeout) as response:
            status, start = response.status_code, next(response.iter_content(PEEK), b"")
        wrong = _judged(judge_ping(status, start), status, where)
        if wrong is not None or not thorough:
            return wrong
        call = f"GET /storage/blob at {where}"
        asked = keys | {FILE_NAME: _MISSING_RECORDING.encode(), PROVIDER: b"vaultml"}
        with http.vault("GET", f"{url}/storage/blob", asked, timeout) as response:
            status = response.status_code
    except transport.ERRORS as error:
        return transport.failure(error, call, transport.VAULT_VARIABLES)
    if 200 <= status < 300:
        return Failure(Cause.NOT_A_VAULT, f"{where} is not a Vault: it answers {status} to everything")
    return None


def _judged(ping: Ping, status: int, where: str) -> Failure | None:
    causes = {Ping.KEYS_REFUSED: Cause.UNAUTHORIZED, Ping.FAILING: Cause.UNAVAILABLE}
    if ping is Ping.OK:
        return None
    said = f"{where} {ping.value} ({status})"
    if ping is Ping.NOT_A_VAULT and status == 200:
        said = f"{where} is not a Vault, it answers with a web page"
    return Failure(causes.get(ping, Cause.NOT_A_VAULT), said)
