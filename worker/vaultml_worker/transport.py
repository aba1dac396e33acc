"""HTTP as the worker needs it: to Vault with keys and without proxies, to storage without keys and with proxies.

requests' own reading of the environment is off: it would send our keys through a proxy, or replace them by those of a
.netrc file. This module reads what is needed of it.
"""

import os
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from requests.exceptions import ConnectionError as ConnectionFailed
from requests.exceptions import (
    ConnectTimeout,
    InvalidHeader,
    InvalidProxyURL,
    InvalidSchema,
    InvalidURL,
    MissingSchema,
    ProxyError,
    RequestException,
    SSLError,
    Timeout,
)
from requests.utils import get_environ_proxies
from urllib3.exceptions import HTTPError, LocationParseError
from urllib3.exceptions import SSLError as TransportSSLError
from urllib3.util import parse_url

from vaultml_worker.environment import unquoted
from vaultml_worker.failures import Cause, Failure

CA_VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")
"""Usual variables that name a PEM file with trusted certificate authorities."""
_MALFORMED = (InvalidURL, MissingSchema, InvalidSchema, InvalidHeader, LocationParseError, ValueError)
ERRORS = (RequestException, HTTPError, ValueError)
"""What a request can raise: some of urllib3's errors pass requests unchanged."""


def no_certificates(path: Path) -> str | None:
    """Return why a file gives no certificate authority; None when it does."""
    if path.is_dir():
        return "is a folder: name a file in PEM format"
    if not path.is_file():
        return "no such file"
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(path)
    except OSError as error:  # SSLError is one
        return (
            "holds no certificate in PEM format" if isinstance(error, ssl.SSLError) else error.strerror or "unreadable"
        )
    return None if context.cert_store_stats()["x509"] else "holds no certificate in PEM format"


def environment_cas() -> dict[str, Path]:
    """Return the files of certificate authorities that the usual variables name."""
    named = {name: unquoted(os.environ.get(name, "")) for name in CA_VARIABLES}
    return {name: Path(path) for name, path in named.items() if path}


class Transport:
    """A pool of connections. Thread-safe; closed with `close`.

    Certificates are trusted that certifi's authorities signed, those that the usual variables name, or those in the
    file `ca`. `proxy` is for Vault; for storage the proxies of the environment are used (HTTPS_PROXY, NO_PROXY, ...).
    """

    def __init__(self, *, ca: Path | None = None, proxy: str = "", connections: int = 8) -> None:
        self._session = requests.Session()
        self._session.trust_env = False
        self._proxy = {"http": proxy, "https": proxy} if proxy else {}
        context = ssl.create_default_context()
        # OpenSSL reads SSL_CERT_FILE by itself where nothing stands around its value.
        read = Path(os.environ.get("SSL_CERT_FILE", ""))
        for path in {*environment_cas().values(), *([ca] if ca else ())} - {read}:
            with suppress(OSError):  # the settings have said what is wrong with it
                context.load_verify_locations(path)
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, _Adapter(context, connections))

    @contextmanager
    def vault(
        self, method: str, url: str, headers: Mapping[str, bytes], timeout: float, body: bytes | None = None
    ) -> Iterator[requests.Response]:
        """Request something of a Vault, with its keys in `headers`, which follow no redirect."""
        # Not `session.request`: what it adds, its own headers and cookies, is not wanted.
        request = requests.Request(method, url, headers=headers, data=body).prepare()
        with self._session.send(
            request, timeout=timeout, stream=True, allow_redirects=False, proxies=self._proxy
        ) as response:
            yield response

    @contextmanager
    def storage(self, url: str, timeout: float) -> Iterator[requests.Response]:
        """Get what a signed URL names, without any keys."""
        proxies = get_environ_proxies(url)
        with self._session.get(url, timeout=timeout, stream=True, proxies=proxies) as response:
            yield response

    def close(self) -> None:
        """Close the pooled connections."""
        self._session.close()


class _Adapter(HTTPAdapter):
    """Trusts what a context trusts, besides certifi's authorities."""

    def __init__(self, context: ssl.SSLContext, connections: int) -> None:
        self._context = context
        super().__init__(pool_connections=4, pool_maxsize=connections, max_retries=0)

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        """Make connections with the context."""
        super().init_poolmanager(*args, **options, ssl_context=self._context)

    def proxy_manager_for(self, proxy: str, **options: Any) -> Any:
        """Make connections through a proxy with the context."""
        return super().proxy_manager_for(proxy, **options, ssl_context=self._context)


VAULT_VARIABLES = "VAULT_API_URL, VAULT_ACCESS_KEY, VAULT_SECRET_KEY, VAULT_PROXY"
STORAGE_VARIABLES = "HTTPS_PROXY, HTTP_PROXY, ALL_PROXY, NO_PROXY"


def failure(error: BaseException, call: str, variables: str) -> Failure:
    """Return the failure that an error of `ERRORS` is; its own text may hold a signed URL, and is not used.

    `variables` are those that a request which can't be made may come from.
    """
    kinds: tuple[tuple[Any, Cause, str], ...] = (
        (
            (ProxyError, InvalidProxyURL),
            Cause.UNAVAILABLE,
            f"the proxy is not reachable, or refuses; check {variables}",
        ),
        (_MALFORMED, Cause.BAD_SETTING, f"its address or a header is malformed; check {variables}"),
        ((SSLError, TransportSSLError), Cause.TLS_FAILED, "no TLS, or a certificate that is not trusted"),
        (ConnectTimeout, Cause.UNAVAILABLE, "no connection in time"),
        (Timeout, Cause.UNAVAILABLE, "no answer in time"),
        (ConnectionFailed, Cause.UNAVAILABLE, "no connection, or it broke"),
    )
    for kind, cause, reason in kinds:
        if isinstance(error, kind):
            return Failure(cause, f"{call}: {reason}")
    return Failure(Cause.UNAVAILABLE, f"{call}: the transfer broke off")


def is_address(url: str) -> bool:
    """Return True if requests can be sent to this http(s) address."""
    try:
        parts, parsed = urlsplit(url), parse_url(url)
        requests.Request("POST", url).prepare()
        host = parts.hostname or ""
        host.encode("idna")
        plain = parts.scheme in ("http", "https") and not set(" #") & set(url)
        return plain and bool(host and parsed.host) and parts.port != 0
    except (ValueError, HTTPError, requests.RequestException):
        return False
