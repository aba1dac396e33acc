"""Whether Kerberos Vault can be reached with a pipeline's credentials."""

import ssl
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import aiohttp

from vaultml_operator.probes.outcome import Outcome

ACCESS_KEY = "X-Kerberos-Storage-AccessKey"
SECRET_KEY = "X-Kerberos-Storage-SecretAccessKey"  # noqa: S105 - a header's name

_LOOKED_AT = 512
"""Bytes of a body that are enough to know a web page."""


@dataclass(frozen=True, slots=True)
class Access:
    """Vault's address, with `/api` for newer Vaults, and an account's keys."""

    url: str
    access_key: str = field(repr=False)
    secret_key: str = field(repr=False)


async def check(access: Access, timeout: float = 5.0) -> Outcome:
    """Call `POST /ping` within `timeout` seconds.

    Follows no redirect, which could carry the keys elsewhere; repeats nothing of an answer: Vault's errors echo them.
    """
    shown = _shown(access.url)
    if not shown:
        return Outcome("VaultUnreachable", "vault.apiUrl is no address: write it like http://vault.kerberos-vault/api")
    keys = access.access_key, access.secret_key
    if not all(keys) or any(not key.isascii() or not key.isprintable() or key != key.strip() for key in keys):
        return Outcome(
            "CredentialsRefused",
            "the Vault credentials are empty, or hold a line break, an outer blank or a non-ASCII character: "
            "write the Secret anew, without a newline at the end",
        )
    try:
        # No .netrc, and no proxy that would see the keys.
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=timeout), trust_env=False) as session,
            session.post(
                f"{access.url.rstrip('/')}/ping",
                headers={ACCESS_KEY: access.access_key, SECRET_KEY: access.secret_key},
                allow_redirects=False,
            ) as response,
        ):
            page = response.status == 200 and _is_page(await response.content.read(_LOOKED_AT))
            return _outcome(response.status, shown, page=page)
    except (aiohttp.ClientError, OSError, ValueError) as error:  # TimeoutError is an OSError
        return Outcome("VaultUnreachable", f"Vault at {shown} can't be reached: {_cause(error)}")


def _outcome(status: int, shown: str, *, page: bool) -> Outcome:
    if status in (401, 403):
        return Outcome(
            "CredentialsRefused",
            f"Vault at {shown} refuses the keys ({status}): check the access key and secret key in the Secret",
        )
    if status >= 500 or status in (408, 425, 429):
        return Outcome("VaultFailing", f"Vault at {shown} answers {status}: look at its log and its storage")
    if 300 <= status < 400:
        return Outcome(
            "NotAVault", f"{shown} answers with a redirect ({status}): set vault.apiUrl to the address it leads to"
        )
    if status == 200 and not page:
        return Outcome("Reachable", "Vault answers, and takes the credentials")
    said = "with a web page" if page else f"{status}"
    hint = "" if urlsplit(shown).path.rstrip("/").endswith("/api") else "; newer Vaults need /api at the end"
    return Outcome("NotAVault", f"{shown} is not a Vault's API, it answers {said}: correct vault.apiUrl{hint}")


def _is_page(start: bytes) -> bool:
    return start.lstrip()[:1] == b"<"


def _cause(error: Exception) -> str:
    """By the exception's kind alone: its text may hold more than may be published."""
    kinds: tuple[tuple[type[BaseException], str], ...] = (
        (aiohttp.ClientConnectorCertificateError, "its certificate is not trusted"),
        (ssl.SSLError, "no TLS connection; is it http:// rather than https://?"),
        (aiohttp.ClientSSLError, "no TLS connection; is it http:// rather than https://?"),
        (aiohttp.ClientConnectorDNSError, "no such name; check vault.apiUrl"),
        (TimeoutError, "no answer in time; check vault.apiUrl and network policies"),
        (aiohttp.ClientConnectorError, "no connection; check vault.apiUrl, and that it runs"),
        (aiohttp.ServerDisconnectedError, "it closes the connection"),
        (aiohttp.InvalidURL, "vault.apiUrl is no address"),
    )
    return next((cause for kind, cause in kinds if isinstance(error, kind)), "its answer can't be understood")


def _shown(url: str) -> str:
    """The address without user, password, query; empty when it is none."""
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return ""
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return ""
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}{port}{parts.path}"
