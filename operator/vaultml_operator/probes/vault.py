"""Whether Kerberos Vault can be reached with a pipeline's credentials."""

import ssl
from dataclasses import dataclass, field
from functools import lru_cache
from urllib.parse import urlsplit

import aiohttp

from vaultml_common.vault import ACCESS_KEY, PEEK, SECRET_KEY, Ping, judge_ping, shown, unusable
from vaultml_operator.probes.outcome import Outcome


@dataclass(frozen=True, slots=True)
class Access:
    """Vault's address, with `/api` for newer Vaults, an account's keys, and a PEM file with an authority to trust."""

    url: str
    access_key: str = field(repr=False)
    secret_key: str = field(repr=False)
    ca: str = field(default="", repr=False)


async def check(access: Access, timeout: float = 5.0) -> Outcome:
    """Call `POST /ping` within `timeout` seconds.

    Follows no redirect, which could carry the keys elsewhere; repeats nothing of an answer: Vault's errors echo them.
    """
    where = shown(access.url)
    if not where:
        return Outcome("VaultUnreachable", "vault.apiUrl is no address: write it like http://vault.kerberos-vault/api")
    for name, key in (("accessKey", access.access_key), ("secretKey", access.secret_key)):
        if (wrong := unusable(key)) is not None:
            return Outcome("CredentialsRefused", f"the key {name} of the Vault credentials {wrong}")
    try:
        trusted = _trusted(access.ca)
    except (ssl.SSLError, ValueError):
        return Outcome("VaultUnreachable", "vault.ca holds no certificate in PEM format: give a PEM file")
    try:
        # No .netrc, and no proxy that would see the keys.
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=timeout), trust_env=False) as session,
            session.post(
                f"{access.url.rstrip('/')}/ping",
                headers={ACCESS_KEY: access.access_key, SECRET_KEY: access.secret_key},
                allow_redirects=False,
                ssl=trusted,
            ) as response,
        ):
            return _outcome(judge_ping(response.status, await response.content.read(PEEK)), response.status, where)
    except (aiohttp.ClientError, OSError, ValueError) as error:  # TimeoutError is an OSError
        return Outcome("VaultUnreachable", f"Vault at {where} can't be reached: {_cause(error)}")


@lru_cache(maxsize=64)
def _trusted(ca: str) -> ssl.SSLContext:
    """Return what trusts the usual authorities and those of a PEM file; its comments may be in any letters."""
    context = ssl.create_default_context()
    if ca:
        context.load_verify_locations(cadata=ca.encode("ascii", "ignore").decode())
    return context


def _outcome(ping: Ping, status: int, where: str) -> Outcome:
    match ping:
        case Ping.OK:
            return Outcome("Reachable", "Vault answers, and takes the credentials")
        case Ping.KEYS_REFUSED:
            return Outcome(
                "CredentialsRefused",
                f"Vault at {where} refuses the keys ({status}): check the access key and secret key in the Secret",
            )
        case Ping.FAILING:
            return Outcome("VaultFailing", f"Vault at {where} answers {status}: look at its log and its storage")
        case Ping.REDIRECT:
            return Outcome(
                "NotAVault", f"{where} answers with a redirect ({status}): set vault.apiUrl to the address it leads to"
            )
    said = "with a web page" if status == 200 else f"{status}"
    hint = "" if urlsplit(where).path.rstrip("/").endswith("/api") else "; newer Vaults need /api at the end"
    return Outcome("NotAVault", f"{where} is not a Vault's API, it answers {said}: correct vault.apiUrl{hint}")


def _cause(error: Exception) -> str:
    """By the exception's kind alone: its text may hold more than may be published."""
    kinds: tuple[tuple[type[BaseException], str], ...] = (
        (
            aiohttp.ClientConnectorCertificateError,
            "its certificate is not trusted: give the authority that signed it in vault.ca",
        ),
        (ssl.SSLError, "no TLS connection; is it http:// rather than https://?"),
        (aiohttp.ClientSSLError, "no TLS connection; is it http:// rather than https://?"),
        (aiohttp.ClientConnectorDNSError, "no such name; check vault.apiUrl"),
        (TimeoutError, "no answer in time; check vault.apiUrl and network policies"),
        (aiohttp.ClientConnectorError, "no connection; check vault.apiUrl, and that it runs"),
        (aiohttp.ServerDisconnectedError, "it closes the connection"),
        (aiohttp.InvalidURL, "vault.apiUrl is no address"),
    )
    return next((cause for kind, cause in kinds if isinstance(error, kind)), "its answer can't be understood")
