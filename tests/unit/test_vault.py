import gzip
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from flask import Flask, Response, redirect, request

from testbed.process import wait_for
from vaultml_common.vault import ACCESS_KEY, is_recording
from vaultml_worker.dev.vault import Account, application
from vaultml_worker.failures import TABLE, Cause, Failure, Fault
from vaultml_worker.records import Event, VaultAccess
from vaultml_worker.retries import ONCE, Retries
from vaultml_worker.transport import Transport
from vaultml_worker.vault import Vault

KEY = "user/1630567591_6-967003_highway4_200-200-400-400_24_769.mp4"
ACCOUNT = Account("access!@#$%", "s3cret!@#$%", "storj")
BODY = bytes(range(256)) * 5000
MOVIE = b"\0\0\0\x18ftypmovie"

Serve = Callable[[Flask], str]


@pytest.fixture
def stored(tmp_path: Path) -> Flask:
    path = tmp_path / "storj" / KEY
    path.parent.mkdir(parents=True)
    path.write_bytes(BODY)
    return application(tmp_path, ACCOUNT)


def answering(answer: Callable[[], Any], ping: Callable[[], Any] = lambda: Response("pong")) -> Flask:
    """A Vault that answers downloads as scripted; it has no recording of another name than KEY."""
    app = Flask("scripted")
    app.get("/storage/blob")(lambda: answer() if request.headers["X-Kerberos-Storage-FileName"] == KEY else missing())
    app.post("/ping", endpoint="ping")(ping)
    return app


def everything(status: int, body: str | bytes, headers: dict[str, str] | None = None) -> Flask:
    """A web server that gives the same answer to whatever it is asked."""
    app = Flask("everything")
    app.route("/", defaults={"path": ""}, methods=["GET", "POST"])(lambda path: Response(body, status, headers))  # noqa: ARG005
    app.route("/<path:path>", methods=["GET", "POST"], endpoint="all")(lambda path: Response(body, status, headers))  # noqa: ARG005
    return app


def missing() -> Response:
    return Response("{}", 404)


def access(url: str, secret: str = ACCOUNT.secret_key) -> VaultAccess:
    return VaultAccess(url, ACCOUNT.access_key, secret)


def event(key: str = KEY, own: VaultAccess | None = None, source: str = "storj") -> Event:
    return Event({}, key, source, access=own)


def fetch(vault: Vault, what: Event) -> bytes:
    try:
        return vault.fetch(what)
    finally:
        vault.close()


def cause_of(vault: Vault, what: Event) -> Cause:
    with pytest.raises(Failure) as caught:
        fetch(vault, what)
    for secret in (ACCOUNT.access_key, ACCOUNT.secret_key, "wr0ng-secret", "p1anted"):
        assert secret not in str(caught.value)
    return caught.value.cause


def test_a_fault_of_ours_is_never_permanent() -> None:
    assert set(TABLE) == set(Cause)
    for cause, entry in TABLE.items():
        assert cause.permanent is (entry.fault is not Fault.OURS)
        assert entry.meaning
        assert cause.permanent or entry.advice


@pytest.mark.parametrize("prefix", ["", "/api", "/api/"])
@pytest.mark.parametrize("download", ["blob", "signed-url"])
def test_a_recording_arrives_whole(serve: Serve, stored: Flask, prefix: str, download: str) -> None:
    url = serve(stored) + prefix
    assert fetch(Vault(access(url), download=download), event()) == BODY  # type: ignore[arg-type]


def test_a_message_brings_its_own_vault(serve: Serve, stored: Flask) -> None:
    own = access(serve(stored))
    assert fetch(Vault(access("http://127.0.0.1:9")), event(own=own)) == BODY
    vault = Vault(None, retries=ONCE)
    # Until one event has brought its own, ours may well be missing by mistake.
    with pytest.raises(Failure) as caught:
        vault.fetch(event())
    assert caught.value.cause is Cause.NO_VAULT
    assert vault.fetch(event(own=own)) == BODY
    assert cause_of(vault, event()) is Cause.NO_CREDENTIALS


def test_what_each_refusal_means(serve: Serve, stored: Flask) -> None:
    url = serve(stored)
    wrong = access(url, "wr0ng-secret")
    for vault, what, cause in (
        (Vault(access(url), retries=ONCE), event("user/gone.mp4"), Cause.NOT_FOUND),
        (Vault(access(url), retries=ONCE), event("../../etc/passwd"), Cause.REFUSED),
        (Vault(wrong, retries=ONCE), event(), Cause.UNAUTHORIZED),
        (Vault(access(url), retries=ONCE), event(source="other"), Cause.UNAUTHORIZED),
        (Vault(access(url), retries=ONCE), event(own=wrong), Cause.EVENT_UNAUTHORIZED),
        (Vault(access(url), max_bytes=1000, retries=ONCE), event(), Cause.TOO_LARGE),
    ):
        assert cause_of(vault, what) is cause


@pytest.mark.parametrize(
    ("status", "body", "cause"),
    [
        (404, "404 page not found", Cause.NOT_A_VAULT),
        (404, "", Cause.NOT_A_VAULT),
        (400, "bad request", Cause.NOT_A_VAULT),
        (405, "", Cause.NOT_A_VAULT),
        (410, "", Cause.NOT_A_VAULT),
        (200, "<!doctype html><title>login</title>", Cause.NOT_A_VAULT),
        (200, '\ufeff  <html lang="de">', Cause.NOT_A_VAULT),
        (200, '{"status": "ok"}', Cause.NOT_A_VAULT),
        (200, "It works!", Cause.NOT_A_VAULT),
        (200, "", Cause.NOT_A_VAULT),
        (201, "created", Cause.NOT_A_VAULT),
        (204, "", Cause.NOT_A_VAULT),
        (206, "part", Cause.NOT_A_VAULT),
        (302, "", Cause.NOT_A_VAULT),
        (503, "", Cause.UNAVAILABLE),
        (401, "", Cause.UNAUTHORIZED),
    ],
)
@pytest.mark.parametrize("download", ["blob", "signed-url"])
def test_a_web_server_that_is_no_vault_holds_the_queue(
    serve: Serve, status: int, body: str, cause: Cause, download: Any
) -> None:
    url = serve(everything(status, body, {"Location": "/login"} if status == 302 else None))
    found = cause_of(Vault(access(url), download=download, retries=ONCE), event())
    assert found is cause
    assert not found.permanent


@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        (lambda: Response("no", 404), Cause.NOT_FOUND),
        (lambda: Response("no", 410), Cause.NOT_FOUND),
        (lambda: Response("no", 400), Cause.REFUSED),
        (lambda: Response("no", 416), Cause.REFUSED),
        (lambda: Response(MOVIE, 206), Cause.REFUSED),
    ],
)
def test_a_refusal_is_believed_of_a_vault_that_works(serve: Serve, answer: Callable[[], Any], cause: Cause) -> None:
    assert cause_of(Vault(access(serve(answering(answer))), retries=ONCE), event()) is cause
    # Keys that stop working: whatever is said of a recording then is not believed.
    app = answering(answer, ping=lambda: Response("no", 401))
    assert cause_of(Vault(access(serve(app)), retries=ONCE), event()) is Cause.UNAUTHORIZED


def test_text_from_a_vault_that_works_is_the_recordings_fault(serve: Serve) -> None:
    """It is handed on: decoding says what is wrong with it."""
    for text in (b"", b"<html>", b"some text"):
        app = answering(partial(Response, text))
        assert fetch(Vault(access(serve(app)), retries=ONCE), event()) == text


def test_work_goes_on_when_vault_is_right_again(serve: Serve) -> None:
    right = threading.Event()
    held: list[tuple[Cause, int]] = []
    messages: list[str] = []

    def heard(failure: Failure, _wait: float) -> None:
        messages.append(f"{failure.message}: {failure.cause.advice}")
        if len(messages) == 3:
            right.set()

    app = answering(
        lambda: Response(MOVIE) if right.is_set() else Response("<html>"),
        lambda: Response("pong" if right.is_set() else "<html>"),
    )
    vault = Vault(
        access(serve(app)),
        retries=Retries(max_wait=0.01, on_retry=heard, on_held=lambda cause, change: held.append((cause, change))),
    )
    assert fetch(vault, event()) == MOVIE
    assert held == [(Cause.NOT_A_VAULT, +1), (Cause.NOT_A_VAULT, -1)]
    assert "web page" in messages[0]
    assert "/api" in messages[0]


def test_what_cannot_be_a_recording() -> None:
    page = '<html lang="de"><title>Zugangsüberprüfung</title>'
    pages = [page.encode(encoding) for encoding in ("utf-8", "utf-8-sig", "latin-1", "utf-16", "utf-16-be")]
    assert not any(map(is_recording, (b"", b"<x>", b"{}", b"plain", "größer".encode() * 99, *pages)))
    assert all(map(is_recording, (MOVIE, b"Salted__\xff\x00", b"U2FsdGVkX19abc", b"\xff\xd8\xff", b"RIFF\x24\0", BODY)))


def test_a_foreign_provider_does_not_hold_the_queue_of_a_vault_that_works(serve: Serve, stored: Flask) -> None:
    """Our credentials were accepted for another provider, and still are: it is this event that is refused, for good."""
    vault = Vault(access(serve(stored)), retries=ONCE)
    with pytest.raises(Failure) as caught:
        vault.fetch(event(source="other"))
    assert caught.value.cause is Cause.UNAUTHORIZED
    assert vault.fetch(event()) == BODY
    with pytest.raises(Failure, match="may not use the provider") as caught:
        vault.fetch(event(source="other"))
    assert caught.value.cause is Cause.PROVIDER_REFUSED
    vault.close()


def test_a_provider_that_is_unbound_while_we_work_holds(serve: Serve) -> None:
    """That is our configuration; and that another recording is missing proves nothing about its provider."""
    answers = iter([200, 401, 404, 401])
    vault = Vault(access(serve(answering(lambda: Response(MOVIE, next(answers))))), retries=ONCE)
    assert vault.fetch(event()) == MOVIE
    for source, cause in (("storj", Cause.UNAUTHORIZED), ("third", Cause.NOT_FOUND), ("storj", Cause.UNAUTHORIZED)):
        with pytest.raises(Failure) as caught:
            vault.fetch(event(source=source))
        assert caught.value.cause is cause
    vault.close()


def test_keys_that_were_good_once_and_are_refused_now_hold(serve: Serve) -> None:
    answers = iter([200, 401, 401])
    app = answering(lambda: Response(MOVIE, status=next(answers)), lambda: Response(status=401))
    vault = Vault(access(serve(app)), retries=ONCE)
    assert vault.fetch(event()) == MOVIE
    for _ in range(2):
        with pytest.raises(Failure) as caught:
            vault.fetch(event())
        assert caught.value.cause is Cause.UNAUTHORIZED
    vault.close()


@pytest.mark.parametrize("url", ["http://.x/", "gopher://x", "http://a b/", "http://[bad/x"])
def test_an_event_whose_vault_has_no_address_is_given_up_at_once(url: str) -> None:
    assert cause_of(Vault(None), event(own=access(url))) is Cause.EVENT_VAULT_FAILED


def test_a_dead_vault_that_only_an_event_names_is_given_up_while_others_work(serve: Serve, stored: Flask) -> None:
    """Where nothing else works either, it may be our network: the event is held."""
    good, dead = access(serve(stored)), access("http://127.0.0.1:9")
    retries: list[float] = []
    begun = threading.Event()

    def heard(_failure: Failure, wait: float) -> None:
        retries.append(wait)
        begun.set()

    vault = Vault(None, event_vault_patience=0.1, retries=Retries(max_wait=0.01, on_retry=heard))
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(vault.fetch, event(own=dead))
        begun.wait(10)
        wait_for(lambda: sum(retries) > 0.3, 10, "retries beyond the patience")
        assert not held.done()
        assert vault.fetch(event(own=good)) == BODY
        with pytest.raises(Failure, match="no connection") as caught:
            held.result(10)
    assert caught.value.cause is Cause.EVENT_VAULT_FAILED
    vault.close()


def test_a_wrong_proxy_of_ours_costs_no_event_that_brings_its_vault(serve: Serve, stored: Flask) -> None:
    own = access(serve(stored))
    for proxy in ("http://.proxy:3128", "http://127.0.0.1:9"):
        stop = threading.Event()
        threading.Timer(0.3, stop.set).start()
        assert not cause_of(
            Vault(None, http=Transport(proxy=proxy), retries=Retries(stop, max_wait=0.01)), event(own=own)
        ).permanent


def test_a_stop_ends_the_retries_for_an_events_vault() -> None:
    stop = threading.Event()
    stop.set()
    assert not cause_of(Vault(None, retries=Retries(stop)), event(own=access("http://127.0.0.1:9"))).permanent


@pytest.mark.parametrize("secret", ["line\nbreak", " blank", "tail\r"])
def test_keys_that_no_header_can_hold_are_a_fault_of_the_setting(serve: Serve, stored: Flask, secret: str) -> None:
    assert cause_of(Vault(access(serve(stored), secret), retries=ONCE), event()) is Cause.BAD_SETTING


@pytest.mark.parametrize("status", [500, 502, 503, 429, 408])
def test_passing_trouble_is_retried_with_a_sentence(serve: Serve, status: int) -> None:
    calls: list[int] = []
    heard: list[str] = []

    def answer() -> Response:
        calls.append(1)
        return Response("s3cret!@#$%", status=status) if len(calls) < 3 else Response(MOVIE)

    vault = Vault(
        access(serve(answering(answer))),
        retries=Retries(max_wait=0.01, on_retry=lambda failure, _wait: heard.append(str(failure))),
    )
    assert fetch(vault, event()) == MOVIE
    assert len(heard) == 2
    assert all(str(status) in text and "s3cret" not in text for text in heard)


def test_no_connection_is_retried_until_the_stop() -> None:
    stop = threading.Event()
    vault = Vault(access("http://127.0.0.1:9"), retries=Retries(stop, on_retry=lambda _failure, _wait: stop.set()))
    with pytest.raises(Failure, match=r"GET /storage/blob at http://127\.0\.0\.1:9: no connection") as caught:
        fetch(vault, event())
    assert caught.value.cause is Cause.UNAVAILABLE


def test_the_keys_follow_no_redirect(serve: Serve) -> None:
    leaked: list[str | None] = []
    other = Flask("other")

    @other.get("/storage/blob")
    def steal() -> Response:
        leaked.append(request.headers.get(ACCESS_KEY))
        return Response(MOVIE)

    target = serve(other)
    app = answering(lambda: redirect(f"{target}/storage/blob"))
    with pytest.raises(Failure, match="redirects") as caught:
        fetch(Vault(access(serve(app)), retries=ONCE), event())
    assert caught.value.cause is Cause.NOT_A_VAULT
    assert leaked == []


@pytest.mark.parametrize("encoding", ["gzip", None])
def test_old_vaults_gzip(serve: Serve, encoding: str | None) -> None:
    headers = {"Content-Encoding": encoding} if encoding else {}
    url = serve(answering(lambda: Response(gzip.compress(BODY), headers=headers)))
    assert fetch(Vault(access(url)), event()) == BODY
    bomb = serve(answering(lambda: Response(gzip.compress(bytes(50_000_000)), headers=headers)))
    assert cause_of(Vault(access(bomb), max_bytes=1_000_000), event()) is Cause.TOO_LARGE


def test_an_endless_answer_ends(serve: Serve) -> None:
    def endless() -> Iterator[bytes]:
        while True:
            yield bytes(1 << 16)

    url = serve(answering(lambda: Response(endless())))
    assert cause_of(Vault(access(url), max_bytes=5_000_000), event()) is Cause.TOO_LARGE
    assert cause_of(Vault(access(url), max_bytes=1 << 50, deadline=0.2, retries=ONCE), event()) is Cause.UNAVAILABLE


def test_an_answer_that_drips_ends(serve: Serve) -> None:
    over = threading.Event()

    def drips() -> Iterator[bytes]:
        while not over.wait(0.02):
            yield b"\0"

    url = serve(answering(lambda: Response(drips(), headers={"Content-Length": "1000000"})))
    assert cause_of(Vault(access(url), deadline=0.3, retries=ONCE), event()) is Cause.UNAVAILABLE
    over.set()


def test_a_broken_off_answer_is_retried(serve: Serve) -> None:
    url = serve(answering(lambda: Response(iter([b"half"]), headers={"Content-Length": "1000"})))
    assert cause_of(Vault(access(url), retries=ONCE), event()) is Cause.UNAVAILABLE


def xml(code: str) -> str:
    return f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>p1anted</Message></Error>"


def signing(storage: Callable[[], Response], blob: Callable[[], Response]) -> Flask:
    """A Vault that signs URLs of a storage that answers as scripted."""
    app = answering(blob)
    app.get("/storage", endpoint="sign")(lambda: {"data": f"{request.host_url}bucket/k?X-Amz-Signature=p1anted"})
    app.get("/bucket/k", endpoint="get")(storage)
    return app


@pytest.mark.parametrize(
    ("status", "body", "headers", "cause"),
    [
        (403, xml("RequestTimeTooSkewed"), {}, Cause.STORAGE_REFUSED),
        (403, xml("InvalidAccessKeyId"), {}, Cause.STORAGE_REFUSED),
        (400, "p1anted", {}, Cause.STORAGE_REFUSED),
        (401, "", {}, Cause.STORAGE_REFUSED),
        (404, xml("NoSuchBucket"), {}, Cause.STORAGE_REFUSED),
        (404, "", {"x-ms-error-code": "ContainerNotFound"}, Cause.STORAGE_REFUSED),
        (404, "404 page not found", {}, Cause.STORAGE_REFUSED),
        (200, xml("AccessDenied"), {}, Cause.STORAGE_REFUSED),
        (200, '{"error": "p1anted"}', {}, Cause.STORAGE_REFUSED),
        (200, "", {}, Cause.STORAGE_REFUSED),
        (204, "", {}, Cause.STORAGE_REFUSED),
        (503, xml("SlowDown"), {}, Cause.UNAVAILABLE),
        (404, xml("NoSuchKey"), {}, Cause.NOT_FOUND),
        (404, "", {"x-ms-error-code": "BlobNotFound"}, Cause.NOT_FOUND),
    ],
)
def test_a_storage_that_refuses_everybody_holds_and_a_missing_key_does_not(
    serve: Serve, status: int, body: str, headers: dict[str, str], cause: Cause
) -> None:
    url = serve(signing(lambda: Response(body, status, headers), lambda: Response(MOVIE)))
    assert cause_of(Vault(access(url), download="signed-url", retries=ONCE), event()) is cause


@pytest.mark.parametrize("status", [403, 404])
def test_a_storage_that_hides_missing_keys_is_seen_through(serve: Serve, status: int) -> None:
    """S3 answers 403 for a missing key to those who may not list: Vault itself knows."""
    url = serve(signing(lambda: Response(xml("AccessDenied"), status), missing))
    assert cause_of(Vault(access(url), download="signed-url", retries=ONCE), event()) is Cause.NOT_FOUND


def test_a_signed_url_that_is_no_address_names_no_url(serve: Serve) -> None:
    for answer in (
        "<html>",
        json.dumps({"data": "gopher://x/p1anted"}),
        json.dumps({"data": "http://.p1anted/"}),
        "[]",
    ):
        app = answering(lambda: Response(MOVIE))
        app.get("/storage", endpoint="sign")(lambda answer=answer: Response(answer))
        assert not cause_of(Vault(access(serve(app)), download="signed-url", retries=ONCE), event()).permanent


def test_odd_keys_travel(serve: Serve, tmp_path: Path) -> None:
    key = "üser/kamera_ä €.mp4"
    path = tmp_path / "storj" / key
    path.parent.mkdir(parents=True)
    path.write_bytes(MOVIE)
    app = application(tmp_path, ACCOUNT)
    assert fetch(Vault(access(serve(app)), retries=ONCE), event(key)) == MOVIE
