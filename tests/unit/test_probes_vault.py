import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trustme
from aiohttp import web

from vaultml_common.vault import ACCESS_KEY, SECRET_KEY
from vaultml_operator.probes import Access, Outcome
from vaultml_operator.probes.vault import check
from vaultml_worker.dev.vault import Account, VaultServer, application

KEYS = ("access-PLANTED", "s3cret!@#$%&-PLANTED")

Answer = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def serving(answer: Answer) -> AsyncIterator[str]:
    server = web.Server(answer)
    runner = web.ServerRunner(server, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def ask(answer: Answer, path: str = "/api", timeout: float = 5.0) -> Outcome:
    async def run() -> Outcome:
        async with serving(answer) as url:
            return await check(Access(url + path, *KEYS), timeout)

    return safe(asyncio.run(run()))


def ask_at(url: str, *keys: str) -> Outcome:
    return safe(asyncio.run(check(Access(url, *(keys or KEYS)), 2.0)))


def safe(outcome: Outcome) -> Outcome:
    assert "PLANTED" not in repr(outcome)
    assert "\n" not in outcome.message
    return outcome


def answering(status: int, text: str = "", **headers: str) -> Answer:
    async def answer(request: web.BaseRequest) -> web.Response:
        # As the real Vault does: the body echoes the keys.
        echo = f"{text}{request.headers[ACCESS_KEY]} {request.headers[SECRET_KEY]}"
        return web.Response(status=status, text=echo, headers=headers)

    return answer


@pytest.fixture
def vault(tmp_path: Path) -> object:
    server = VaultServer(application(tmp_path, Account(*KEYS)))
    yield server
    server.close()


@pytest.mark.parametrize("base", ["", "/", "/api", "/api/"])
def test_a_vault_that_takes_the_keys_is_reachable(vault: VaultServer, base: str) -> None:
    assert ask_at(vault.url + base) == Outcome("Reachable", "Vault answers, and takes the credentials")


def test_wrong_keys_are_told_from_an_unreachable_vault(vault: VaultServer) -> None:
    outcome = ask_at(vault.url + "/api", KEYS[0], "wrong-PLANTED")
    assert (outcome.reason, outcome.ok) == ("CredentialsRefused", False)
    assert "check the access key and secret key" in outcome.message


def test_ping_is_posted_with_the_keys() -> None:
    seen: list[tuple[str, str, str, str]] = []

    async def answer(request: web.BaseRequest) -> web.Response:
        seen.append((request.method, request.path, request.headers[ACCESS_KEY], request.headers[SECRET_KEY]))
        return web.Response(text="pong")

    assert ask(answer).ok
    assert seen == [("POST", "/api/ping", *KEYS)]


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (200, "Reachable"),
        (401, "CredentialsRefused"),
        (403, "CredentialsRefused"),
        (400, "NotAVault"),
        (404, "NotAVault"),
        (405, "NotAVault"),
        (204, "NotAVault"),
        (429, "VaultFailing"),
        (500, "VaultFailing"),
        (503, "VaultFailing"),
    ],
)
def test_each_status_has_its_reason(status: int, reason: str) -> None:
    assert ask(answering(status)).reason == reason


def test_the_api_path_is_hinted_at_where_it_may_be_missing() -> None:
    page = answering(200, "\n <!DOCTYPE html><html>")
    assert "newer Vaults need /api" in ask(page, "").message
    assert "newer Vaults need /api" in ask(answering(404), "/").message
    at_api = ask(page, "/api/")
    assert at_api.reason == "NotAVault"
    assert "newer Vaults" not in at_api.message


def test_a_redirect_is_not_followed_with_the_keys() -> None:
    asked: list[str] = []

    async def answer(request: web.BaseRequest) -> web.Response:
        asked.append(request.path)
        return web.Response(status=307, headers={"Location": "/elsewhere?PLANTED"})

    outcome = ask(answer)
    assert outcome.reason == "NotAVault"
    assert "redirect" in outcome.message
    assert asked == ["/api/ping"]


def test_a_vault_that_does_not_answer_in_time_is_unreachable() -> None:
    async def never(_request: web.BaseRequest) -> web.Response:
        await asyncio.sleep(3600)
        raise AssertionError

    outcome = ask(never, timeout=0.2)
    assert outcome.reason == "VaultUnreachable"
    assert "no answer in time" in outcome.message


def test_unreachable_addresses_say_why() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        refused = ask_at(f"http://127.0.0.1:{unused.getsockname()[1]}/api?token=PLANTED")
    assert refused.reason == "VaultUnreachable"
    assert "no connection" in refused.message
    assert "no such name" in ask_at("http://no-such-vault.invalid/api").message


def test_a_plain_vault_asked_with_tls_says_so(vault: VaultServer) -> None:
    outcome = ask_at(vault.url.replace("http:", "https:"))
    assert outcome.reason == "VaultUnreachable"
    assert "no TLS connection" in outcome.message


def test_a_private_authority_is_trusted_where_the_spec_names_it(tmp_path: Path) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    server = VaultServer(application(tmp_path, Account(*KEYS)), tls=context)
    try:
        for ca, reason, said in (
            (authority.cert_pem.bytes().decode(), "Reachable", ""),
            ("", "VaultUnreachable", "give the authority that signed it in vault.ca"),
            (trustme.CA().cert_pem.bytes().decode(), "VaultUnreachable", "is not trusted"),
            ("no PEM file", "VaultUnreachable", "vault.ca holds no certificate"),
        ):
            outcome = safe(asyncio.run(check(Access(f"{server.url}/api", *KEYS, ca), 5.0)))
            assert (outcome.reason, said in outcome.message) == (reason, True)
    finally:
        server.close()


@pytest.mark.parametrize("url", ["", "vault", "ftp://vault/api", "http://", "http://[::1", "http://vault:port"])
def test_what_is_no_address_is_said(url: str) -> None:
    outcome = ask_at(url)
    assert (outcome.reason, "is no address" in outcome.message) == ("VaultUnreachable", True)


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("PLANTED\n", "ends with a newline"),
        ("PLANTED\r\n", "ends with a carriage return"),
        ("PLANTED\r\nX: y", "control character"),
        (" PLANTED", "white space"),
        ('"PLANTED"', "enclosed in quotes"),
        ("", "is blank"),
        ("\n", "is blank"),
    ],
)
def test_keys_that_no_header_can_hold_are_refused_with_a_hint(key: str, hint: str) -> None:
    outcome = ask_at("http://127.0.0.1:1/api", KEYS[0], key)
    assert outcome.reason == "CredentialsRefused"
    assert "the key secretKey of the Vault credentials" in outcome.message
    assert hint in outcome.message


def test_what_is_shown_of_an_access_holds_no_key() -> None:
    access = Access("http://vault/api", *KEYS)
    assert "PLANTED" not in repr(access)
    assert hash(access) == hash(Access("http://vault/api", *KEYS))
