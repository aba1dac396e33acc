"""A worker that is started with one mistake in its settings: it loses nothing, says what to do, goes on when mended."""

import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trustme
from flask import Flask, Response, request

from testbed.process import wait_for
from testbed.worker import Worker
from tests.real.scene import ACCOUNT, WAIT_S, Scene, keys_of
from vaultml_worker.dev.vault import VaultServer, application

COUNT = 20


def everything(status: int, body: str) -> Flask:
    """A web server that answers everything alike."""
    app = Flask("everything")
    app.before_request(lambda: Response(body, status))
    return app


def storage_that_refuses(scene: Scene) -> Flask:
    """A Vault that works, but whose signed URLs are refused by its storage."""
    app = application(Path(scene.vault._folder), ACCOUNT)

    def refuse() -> Response | None:
        signed = "/signed/" in request.path
        return Response("<Error><Code>RequestTimeTooSkewed</Code></Error>", 403) if signed else None

    app.before_request(refuse)
    return app


@pytest.fixture
def waiting(scene: Scene) -> tuple[Scene, set[str]]:
    """A queue with events of recordings that are in the Vault."""
    sent = scene.events(COUNT)
    scene.send(*sent)
    return scene, keys_of(sent)


def untouched(scene: Scene) -> bool:
    return sum(scene.committed().values()) == 0 and scene.letters() == [] and scene.target.messages() == []


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"VAULT_SECRET_KEY": f"{ACCOUNT.secret_key}\n"}, "VAULT_SECRET_KEY: ends with a newline: create the Secret"),
        ({"VAULT_ACCESS_KEY": f" {ACCOUNT.access_key}"}, "VAULT_ACCESS_KEY: begins or ends with white space"),
        ({"VAULT_SECRET_KEY": f"{ACCOUNT.secret_key}\r"}, "VAULT_SECRET_KEY: ends with a carriage return"),
        ({"VAULT_SECRET_KEY": f'"{ACCOUNT.secret_key}"'}, "VAULT_SECRET_KEY: is enclosed in quotes"),
        ({"VAULT_API_URL": "http://.vault/api"}, "VAULT_API_URL: must look like"),
        ({"VAULT_SSL_CA": "/dev/null"}, "VAULT_SSL_CA: /dev/null: "),
        ({"HTTP_HOST": "everywhere"}, "HTTP_HOST: must be an IPv4 or IPv6 address"),
    ],
)
def test_what_no_start_can_mend_ends_the_start_by_name(
    waiting: tuple[Scene, set[str]], variables: dict[str, str], says: str
) -> None:
    scene, _ = waiting
    worker = scene.worker(**variables)
    assert worker.wait() == 2
    assert says in worker.log_text()
    assert "Traceback" not in worker.log_text()
    assert untouched(scene)


def test_what_tools_add_around_values_is_removed(waiting: tuple[Scene, set[str]]) -> None:
    """As an env file with CRLF line ends, or docker --env-file with quotes, delivers them."""
    scene, keys = waiting
    kept = {"VAULT_ACCESS_KEY", "VAULT_SECRET_KEY", "KAFKA_PASSWORD"}
    odd = {
        name: value if name in kept else f'"{value}"\r' if number % 2 else f" {value}\n"
        for number, (name, value) in enumerate(scene.environment().items())
    }
    worker = scene.worker(**odd)
    scene.await_results(keys)
    scene.await_committed()
    assert worker.terminate() == 0
    assert scene.letters() == []


Mistake = tuple[dict[str, str], str]


def mistake(kind: str, scene: Scene, serve: Callable[[Flask], str]) -> Mistake:
    """The variables of a mistake, and what the log says about it."""
    match kind:
        case "a gateway that answers 404":
            return {"VAULT_API_URL": serve(everything(404, "404 page not found"))}, "is not a Vault (404)"
        case "a wrong path":
            return {"VAULT_API_URL": scene.vault.url + "/v1"}, "newer Vaults need /api"
        case "a web page":
            return {"VAULT_API_URL": serve(everything(200, "<!doctype html><title>Login</title>"))}, "a web page"
        case "JSON for everything":
            return {"VAULT_API_URL": serve(everything(200, '{"status": "ok"}'))}, "answers 200 to everything"
        case "nothing, 204":
            return {"VAULT_API_URL": serve(everything(204, ""))}, "is not a Vault (204)"
        case "wrong keys":
            return {"VAULT_SECRET_KEY": "another"}, "check VAULT_ACCESS_KEY and VAULT_SECRET_KEY"
        case "no Vault at all":
            empty = dict.fromkeys(("VAULT_API_URL", "VAULT_ACCESS_KEY", "VAULT_SECRET_KEY"), "")
            return empty, "set VAULT_API_URL, VAULT_ACCESS_KEY and VAULT_SECRET_KEY"
        case "a storage that refuses":
            url = serve(storage_that_refuses(scene)) + "/api"
            return {"VAULT_API_URL": url, "VAULT_DOWNLOAD": "signed-url"}, "RequestTimeTooSkewed"
    raise AssertionError(kind)


@pytest.mark.parametrize(
    "kind",
    [
        "a gateway that answers 404",
        "a wrong path",
        "a web page",
        "JSON for everything",
        "nothing, 204",
        "wrong keys",
        "no Vault at all",
        "a storage that refuses",
    ],
)
def test_a_mistake_holds_the_queue_and_costs_nothing(
    waiting: tuple[Scene, set[str]], serve: Callable[[Flask], str], kind: str
) -> None:
    scene, keys = waiting
    variables, says = mistake(kind, scene, serve)
    worker = scene.worker(**variables).wait_ready()
    worker.wait_log(says)

    def held() -> float:
        return sum(value for name, value in worker.metrics().items() if name.startswith("vaultml_held_recordings"))

    wait_for(lambda: held() > 0, WAIT_S, "recordings to be held", process=worker.process)
    assert worker.ready()
    assert untouched(scene)
    assert worker.terminate() == 0
    assert untouched(scene)
    mended = scene.worker()
    scene.await_results(keys)
    scene.await_committed()
    assert mended.terminate() == 0
    assert scene.letters() == []


def test_a_private_authority_of_vault(waiting: tuple[Scene, set[str]], tmp_path: Path) -> None:
    scene, keys = waiting
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    server = VaultServer(application(Path(scene.vault._folder), ACCOUNT), tls=context)
    try:
        worker = scene.worker(VAULT_API_URL=f"{server.url}/api").wait_ready()
        worker.wait_log("give the CA that signed the certificate in VAULT_SSL_CA")
        assert untouched(scene)
        assert worker.terminate() == 0
        mended = scene.worker(VAULT_API_URL=f"{server.url}/api", VAULT_SSL_CA=str(tmp_path / "ca.pem"))
        scene.await_results(keys)
        assert mended.terminate() == 0
    finally:
        server.close()
    assert scene.letters() == []


def test_work_goes_on_by_itself_when_vault_is_right_again(waiting: tuple[Scene, set[str]]) -> None:
    scene, keys = waiting
    more = scene.events(4 * COUNT)
    scene.send(*more)
    keys |= keys_of(more)
    scene.vault.stop()
    page = VaultServer(
        everything(200, "<html>maintenance</html>"), port=int(scene.vault.url.split(":")[2].split("/")[0])
    )
    try:
        worker: Worker = scene.worker().wait_ready()
        worker.wait_log("it answers with a web page: correct VAULT_API_URL")
        assert untouched(scene)
    finally:
        page.close()
    scene.vault.start()
    scene.await_results(keys)
    scene.await_committed()
    held: dict[str, Any] = {name: value for name, value in worker.metrics().items() if "held" in name}
    assert sum(held.values()) == 0
    assert worker.terminate() == 0
    assert scene.letters() == []
