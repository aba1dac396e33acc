"""Private certificate authorities and proxies."""

import socket
import socketserver
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme
from flask import Flask, Response, request

from vaultml_worker.dev.vault import Account, VaultServer, application
from vaultml_worker.failures import Cause, Failure
from vaultml_worker.records import Event, VaultAccess
from vaultml_worker.retries import ONCE
from vaultml_worker.transport import Transport, no_certificates
from vaultml_worker.vault import Vault

KEY = "user/a.mp4"
MOVIE = b"\0\0\0\x18ftypmovie"
ACCOUNT = Account("access", "s3cret", "storj")
PROXY_VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*PROXY_VARIABLES, "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def vault(tmp_path: Path) -> Flask:
    path = tmp_path / "storj" / KEY
    path.parent.mkdir(parents=True)
    path.write_bytes(MOVIE)
    return application(tmp_path, ACCOUNT)


@pytest.fixture
def private(vault: Flask, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The address of a Vault with a certificate of a private authority, and that authority's file."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    server = VaultServer(vault, tls=context)
    yield server.url, tmp_path / "ca.pem"
    server.close()


def fetch(url: str, http: Transport | None = None, download: str = "blob") -> bytes:
    access = VaultAccess(url, ACCOUNT.access_key, ACCOUNT.secret_key)
    vault = Vault(access, http=http, download=download, retries=ONCE)  # type: ignore[arg-type]
    try:
        return vault.fetch(Event({}, KEY, "storj"))
    finally:
        vault.close()


@pytest.mark.parametrize("download", ["blob", "signed-url"])
def test_a_private_authority_is_trusted_where_it_is_named(
    private: tuple[str, Path], monkeypatch: pytest.MonkeyPatch, download: str
) -> None:
    url, ca = private
    with pytest.raises(Failure, match="not trusted") as caught:
        fetch(url, download=download)
    assert caught.value.cause is Cause.TLS_FAILED
    assert not caught.value.cause.permanent
    for name in ("VAULT_SSL_CA", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"):
        assert name in caught.value.cause.advice
    assert fetch(url, Transport(ca=ca), download) == MOVIE
    for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"):
        with monkeypatch.context() as patch:
            patch.setenv(name, f"{ca}\r\n" if download == "blob" else str(ca))  # as an env file with CRLF delivers it
            assert fetch(url, Transport(), download) == MOVIE
            # Both together: one for the storage, another for Vault, say.
            assert fetch(url, Transport(ca=ca), download) == MOVIE


def test_an_authority_of_someone_else_does_not_help(private: tuple[str, Path], tmp_path: Path) -> None:
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(other)
    with pytest.raises(Failure, match="not trusted"):
        fetch(private[0], Transport(ca=other))


def test_files_without_certificates_are_told(tmp_path: Path) -> None:
    key, empty, text, good = (tmp_path / name for name in ("key", "empty", "text", "good"))
    empty.touch()
    text.write_text("not a certificate")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(good)
    authority.issue_cert("x").private_key_pem.write_to_path(key)
    for path in (empty, text, key):
        assert no_certificates(path) == "holds no certificate in PEM format"
    assert no_certificates(tmp_path / "missing") == "no such file"
    assert no_certificates(good) is None
    (tmp_path / "folder").mkdir()
    assert no_certificates(tmp_path / "folder") == "is a folder: name a file in PEM format"


class Proxy(socketserver.ThreadingTCPServer):
    """A forward proxy for http addresses, which notes what it was asked for."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self) -> None:
        self.asked: list[str] = []
        super().__init__(("127.0.0.1", 0), _Forward)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()


class _Forward(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        assert isinstance(self.server, Proxy)
        line = self.rfile.readline().decode()
        method, target, version = line.split()
        self.server.asked.append(target)
        host, _, path = target.removeprefix("http://").partition("/")
        name, _, port = host.partition(":")
        head = f"{method} /{path} {version}\r\nConnection: close\r\n".encode()
        while (header := self.rfile.readline()).strip():
            if not header.lower().startswith((b"connection", b"proxy-")):
                head += header
        with socket.create_connection((name, int(port))) as upstream:
            upstream.sendall(head + b"\r\n")
            while chunk := upstream.recv(1 << 16):
                self.wfile.write(chunk)


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    server = Proxy()
    yield server
    server.shutdown()
    server.server_close()


def test_signed_urls_go_through_the_environments_proxy_and_vault_does_not(
    serve: Callable[[Flask], str], vault: Flask, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = serve(vault)
    monkeypatch.setenv("HTTP_PROXY", proxy.url)
    monkeypatch.setenv("http_proxy", proxy.url)
    assert fetch(url) == MOVIE
    assert proxy.asked == []
    assert fetch(url, download="signed-url") == MOVIE
    assert [target.partition("?")[0].rpartition("/signed/")[2] for target in proxy.asked] == [KEY]
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert fetch(url, download="signed-url") == MOVIE
    assert len(proxy.asked) == 1


def test_vault_goes_through_the_proxy_that_is_named_for_it(
    serve: Callable[[Flask], str], vault: Flask, proxy: Proxy
) -> None:
    assert fetch(serve(vault), Transport(proxy=proxy.url)) == MOVIE
    assert [target.rpartition("/storage/")[2] for target in proxy.asked] == ["blob"]


def test_a_proxy_that_is_away_or_malformed_is_named(
    serve: Callable[[Flask], str], vault: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = serve(vault)
    for address, cause in (
        ("http://127.0.0.1:9", Cause.UNAVAILABLE),
        ("http://", Cause.UNAVAILABLE),
        ("http://.x:1", Cause.BAD_SETTING),
    ):
        monkeypatch.setenv("http_proxy", address)
        with pytest.raises(Failure, match="HTTPS_PROXY") as caught:
            fetch(url, download="signed-url")
        assert caught.value.cause is cause


def test_the_keys_of_a_netrc_file_are_not_used(
    serve: Callable[[Flask], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str | None] = []
    app = Flask("scripted")

    @app.get("/storage/blob")
    def blob() -> Response:
        seen.append(request.headers.get("Authorization"))
        return Response(MOVIE)

    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password planted\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert fetch(serve(app)) == MOVIE
    assert seen == [None]
