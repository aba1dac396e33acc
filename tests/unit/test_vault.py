import gzip
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from flask import Flask, Response, redirect, request

from vaultml_worker.dev.vault import Account, application
from vaultml_worker.records import Cause, Event, Failure, PermanentFailure, RetryableFailure, VaultAccess
from vaultml_worker.vault import ACCESS_KEY, Vault

KEY = "user/1630567591_6-967003_highway4_200-200-400-400_24_769.mp4"
ACCOUNT = Account("access!@#$%", "s3cret!@#$%", "storj")
BODY = bytes(range(256)) * 5000

Serve = Callable[[Flask], str]


@pytest.fixture
def stored(tmp_path: Path) -> Flask:
    path = tmp_path / "storj" / KEY
    path.parent.mkdir(parents=True)
    path.write_bytes(BODY)
    return application(tmp_path, ACCOUNT)


def answering(answer: Callable[[], Response]) -> Flask:
    app = Flask("scripted")
    app.get("/storage/blob")(answer)
    return app


def access(url: str, secret: str = ACCOUNT.secret_key) -> VaultAccess:
    return VaultAccess(url, ACCOUNT.access_key, secret)


def event(key: str = KEY, own: VaultAccess | None = None, source: str = "storj") -> Event:
    return Event({}, key, source, access=own)


def fetch(vault: Vault, what: Event) -> bytes:
    try:
        return vault.fetch(what)
    finally:
        vault.close()


@pytest.mark.parametrize("prefix", ["", "/api", "/api/"])
@pytest.mark.parametrize("download", ["blob", "signed-url"])
def test_a_recording_arrives_whole(serve: Serve, stored: Flask, prefix: str, download: str) -> None:
    url = serve(stored) + prefix
    assert fetch(Vault(access(url), download=download), event()) == BODY  # type: ignore[arg-type]


def test_a_message_brings_its_own_vault(serve: Serve, stored: Flask) -> None:
    own = access(serve(stored))
    assert fetch(Vault(None), event(own=own)) == BODY
    assert fetch(Vault(access("http://127.0.0.1:9")), event(own=own)) == BODY
    with pytest.raises(PermanentFailure) as caught:
        fetch(Vault(None), event())
    assert caught.value.cause is Cause.NO_VAULT


def test_what_each_refusal_means(serve: Serve, stored: Flask) -> None:
    url = serve(stored)
    wrong = access(url, "wr0ng-secret")
    for vault, what, kind, cause in (
        (Vault(access(url), attempts=1), event("user/gone.mp4"), PermanentFailure, Cause.NOT_FOUND),
        (Vault(access(url), attempts=1), event("../../etc/passwd"), PermanentFailure, Cause.REFUSED),
        (Vault(wrong, attempts=1), event(), RetryableFailure, Cause.UNAUTHORIZED),
        (Vault(access(url), attempts=1), event(source="other"), RetryableFailure, Cause.UNAUTHORIZED),
        (Vault(access(url), attempts=1), event(own=wrong), PermanentFailure, Cause.UNAUTHORIZED),
        (Vault(access(url), max_bytes=1000, attempts=1), event(), PermanentFailure, Cause.TOO_LARGE),
    ):
        with pytest.raises(Failure) as caught:
            fetch(vault, what)
        assert type(caught.value) is kind
        assert caught.value.cause is cause
        for secret in (ACCOUNT.access_key, ACCOUNT.secret_key, "wr0ng-secret"):
            assert secret not in str(caught.value)
        if what.access is not None:
            assert url not in str(caught.value)


def test_a_foreign_provider_does_not_hold_the_queue_of_a_vault_that_works(serve: Serve, stored: Flask) -> None:
    """Our credentials were accepted before and still are: it is this event that is refused, for good."""
    vault = Vault(access(serve(stored)), attempts=1)
    with pytest.raises(RetryableFailure):
        vault.fetch(event(source="other"))
    assert vault.fetch(event()) == BODY
    with pytest.raises(PermanentFailure, match="may not use the provider") as caught:
        vault.fetch(event(source="other"))
    assert caught.value.cause is Cause.UNAUTHORIZED
    vault.close()


def test_keys_that_were_good_once_and_are_refused_now_hold(serve: Serve) -> None:
    answers = iter([200, 401, 401])
    app = answering(lambda: Response(b"movie", status=next(answers)))
    app.post("/ping", endpoint="ping")(lambda: Response(status=401))
    vault = Vault(access(serve(app)), attempts=1)
    assert vault.fetch(event()) == b"movie"
    for _ in range(2):
        with pytest.raises(RetryableFailure) as caught:
            vault.fetch(event())
        assert caught.value.cause is Cause.UNAUTHORIZED
    vault.close()


def test_a_dead_vault_that_only_an_event_names_is_given_up_in_the_end() -> None:
    own = access("http://127.0.0.1:9")
    vault = Vault(None, max_wait=0.01, stranger_patience=0.2)
    with pytest.raises(PermanentFailure, match="no connection") as caught:
        vault.fetch(event(own=own))
    assert caught.value.cause is Cause.UNAVAILABLE
    stop = threading.Event()
    stop.set()
    with pytest.raises(RetryableFailure):
        Vault(None, stop=stop).fetch(event(own=own))
    vault.close()


@pytest.mark.parametrize("status", [500, 502, 503, 429, 408])
def test_passing_trouble_is_tried_again_with_a_word(serve: Serve, status: int) -> None:
    calls: list[int] = []
    heard: list[str] = []

    def answer() -> Response:
        calls.append(1)
        return Response("s3cret!@#$%", status=status) if len(calls) < 3 else Response(b"movie")

    vault = Vault(
        access(serve(answering(answer))), max_wait=0.01, on_retry=lambda failure, _wait: heard.append(str(failure))
    )
    assert fetch(vault, event()) == b"movie"
    assert len(heard) == 2
    assert all(str(status) in text and "s3cret" not in text for text in heard)


def test_no_connection_is_retryable_and_stops_when_told() -> None:
    stop = threading.Event()
    vault = Vault(access("http://127.0.0.1:9"), stop=stop, on_retry=lambda _failure, _wait: stop.set())
    with pytest.raises(RetryableFailure, match=r"GET /storage/blob at http://127\.0\.0\.1:9: no connection") as caught:
        fetch(vault, event())
    assert caught.value.cause is Cause.UNAVAILABLE


def test_the_keys_follow_no_redirect(serve: Serve) -> None:
    leaked: list[str | None] = []
    other = Flask("other")

    @other.get("/storage/blob")
    def steal() -> Response:
        leaked.append(request.headers.get(ACCESS_KEY))
        return Response(b"movie")

    target = serve(other)
    app = answering(lambda: redirect(f"{target}/storage/blob"))  # type: ignore[arg-type, return-value]
    with pytest.raises(RetryableFailure, match="redirects"):
        fetch(Vault(access(serve(app)), attempts=1), event())
    assert leaked == []


@pytest.mark.parametrize("encoding", ["gzip", None])
def test_old_vaults_gzip(serve: Serve, encoding: str | None) -> None:
    headers = {"Content-Encoding": encoding} if encoding else {}
    url = serve(answering(lambda: Response(gzip.compress(BODY), headers=headers)))
    assert fetch(Vault(access(url)), event()) == BODY
    bomb = serve(answering(lambda: Response(gzip.compress(bytes(50_000_000)), headers=headers)))
    with pytest.raises(PermanentFailure) as caught:
        fetch(Vault(access(bomb), max_bytes=1_000_000), event())
    assert caught.value.cause is Cause.TOO_LARGE


def test_an_endless_answer_ends(serve: Serve) -> None:
    def endless() -> Iterator[bytes]:
        while True:
            yield bytes(1 << 16)

    url = serve(answering(lambda: Response(endless())))
    with pytest.raises(PermanentFailure) as caught:
        fetch(Vault(access(url), max_bytes=5_000_000), event())
    assert caught.value.cause is Cause.TOO_LARGE
    with pytest.raises(PermanentFailure) as caught:
        fetch(Vault(access(url), max_bytes=1 << 50, deadline=0.2), event())
    assert caught.value.cause is Cause.TOO_SLOW


def test_a_broken_off_answer_is_retryable(serve: Serve) -> None:
    url = serve(answering(lambda: Response(iter([b"half"]), headers={"Content-Length": "1000"})))
    with pytest.raises(RetryableFailure):
        fetch(Vault(access(url), attempts=1), event())


def test_a_signed_url_that_is_refused_names_no_url(serve: Serve) -> None:
    app = Flask("signing")
    app.get("/storage", endpoint="sign")(lambda: {"data": f"{request.host_url}bucket/k?X-Amz-Signature=p1anted"})
    app.get("/bucket/k", endpoint="get")(lambda: Response("p1anted", status=403))
    with pytest.raises(PermanentFailure) as caught:
        fetch(Vault(access(serve(app)), download="signed-url", attempts=1), event())
    assert "p1anted" not in str(caught.value)
    nothing = Flask("nothing")
    nothing.get("/storage")(lambda: Response("<html>"))  # no JSON
    with pytest.raises(RetryableFailure, match="is this a Vault"):
        fetch(Vault(access(serve(nothing)), download="signed-url", attempts=1), event())
    odd = Flask("odd")
    odd.get("/storage")(lambda: {"data": "gopher://x/p1anted"})
    with pytest.raises(PermanentFailure) as caught:
        fetch(Vault(access(serve(odd)), download="signed-url", attempts=1), event())
    assert "p1anted" not in str(caught.value)


def test_odd_keys_travel(serve: Serve, tmp_path: Path) -> None:
    key = "üser/kamera_ä €.mp4"
    path = tmp_path / "storj" / key
    path.parent.mkdir(parents=True)
    path.write_bytes(b"movie")
    app = application(tmp_path, ACCOUNT)

    @app.before_request
    def decode() -> None:
        """HTTP servers hand header bytes on as Latin-1: read them as the UTF-8 that they are."""
        for name in ("HTTP_X_KERBEROS_STORAGE_FILENAME",):
            request.environ[name] = request.environ[name].encode("latin-1").decode()

    assert fetch(Vault(access(serve(app)), attempts=1), event(key)) == b"movie"
