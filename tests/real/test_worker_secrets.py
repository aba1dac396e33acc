"""No secret is seen, wherever one looks and wherever it was hidden."""

import json
from urllib.parse import quote
from uuid import uuid4

import pytest

from testbed.kafka import Broker
from testbed.worker import Worker
from tests.real.scene import STRANGER, Scene, keys_of
from vaultml_worker.dev.vault import Account


def planted(kind: str) -> str:
    """A secret that stands nowhere else."""
    return f"{kind}!@#$%Zq{uuid4().hex[:10]}"


def leaks(secrets: dict[str, str], surfaces: dict[str, bytes]) -> list[str]:
    """Which secret shows where, however it may be spelled there."""
    return [
        f"{name} in {where}"
        for name, secret in secrets.items()
        for where, body in surfaces.items()
        for text in (body.replace(b"\0", b"").decode("latin-1"),)
        if any(spelled in text for spelled in (secret, json.dumps(secret)[1:-1], quote(secret), quote(secret, safe="")))
    ]


def surfaces(scene: Scene, worker: Worker) -> dict[str, bytes]:
    """All that a worker lets others see."""
    shown = {"log": worker.process.log.read_bytes()}
    for page in ("/metrics", "/readyz", "/healthz"):
        shown[page] = worker.get(page)[1].encode()
    for where, topic in (("result", scene.target), ("dead letter", scene.dead)):
        for number, message in enumerate(topic.messages()):
            shown[f"{where} {number}"] = message.value() or b""
            shown[f"headers of {where} {number}"] = repr(message.headers()).encode()
    return shown


def signed_url(signature: str) -> str:
    return f"https://s3.local/b/a.mp4?X-Amz-Algorithm=AWS4&X-Amz-Expires=60&X-Amz-Signature={signature}"


@pytest.mark.parametrize("form", ["console", "json"])
def test_no_secret_is_seen_anywhere(kafka: Broker, scene: Scene, form: str) -> None:
    own = Account(planted("own-access"), planted("own-secret"))
    message = Account(planted("message-access"), planted("message-secret"))
    wrong = Account(planted("wrong-access"), planted("wrong-secret"))
    signature, damaged = uuid4().hex, planted("damaged")
    secrets = {"KAFKA_PASSWORD": kafka.password, "signature": signature, "damaged": damaged}
    for name, account in (("own", own), ("message", message), ("wrong", wrong)):
        secrets |= {f"{name} access key": account.access_key, f"{name} secret key": account.secret_key}

    scene.vault = scene.another_vault(own)
    others = scene.another_vault(message)
    url = signed_url(signature)
    with_urls, missing, with_keys, with_wrong_keys, with_half_keys = scene.events(5)
    for item in (with_urls, missing):
        item["payload"] |= {"signedUrl": url, "note": f"see <{url}>, please", "list": [url, {"any": [url]}]}
        item["payload"]["metadata"]["url"] = url.upper()
        item["message"] = json.dumps({"payload": {"signedUrl": url}, "storage_secret": message.secret_key})
    missing["payload"]["key"] = "youruser/missing.mp4"
    for item, account in ((with_keys, message), (with_wrong_keys, wrong)):
        keys = {"storage_access_key": account.access_key, "storage_secret": account.secret_key}
        item["data"] = {"storage_uri": others.url, **keys}
        item["payload"]["metadata"] |= keys
    others.store(with_keys["payload"]["key"])
    with_half_keys["data"] = {"storage_secret": message.secret_key}
    odd = f'"storage_secret": "{damaged}", "payload": {{"signedUrl": "{url}", "storage_access_key" : "{damaged}'
    broken = [f'{{"data": {{{odd}"}}, oops'.encode(), f"{{{odd}".encode(), f"{{{odd}".encode("utf-16")]

    scene.vault.stop()
    scene.vault.start(STRANGER)  # so that its 401 echoes our own keys
    scene.vault.break_signed = 2
    scene.send(with_urls, with_keys, with_wrong_keys, missing, with_half_keys, *broken)
    worker = scene.worker(
        VAULT_API_URL=scene.vault.url,
        VAULT_ACCESS_KEY=own.access_key,
        VAULT_SECRET_KEY=own.secret_key,
        VAULT_DOWNLOAD="signed-url",
        LOG_FORMAT=form,
        LOG_LEVEL="DEBUG",
    )
    worker.wait_log("check VAULT_ACCESS_KEY")
    scene.vault.stop()
    scene.vault.start()
    scene.await_results(keys_of([with_urls, with_keys]))
    letters = scene.await_letters(6)
    assert [letter.cause for letter in letters] == ["event-unauthorized", "not-found"] + 4 * ["bad-event"]
    scene.await_committed()
    shown = surfaces(scene, worker)
    assert worker.terminate() == 0

    used = {query.rpartition("X-Amz-Signature=")[2] for query in scene.vault.signed + others.signed}
    assert len(used) >= 2
    secrets |= {f"used signature {number}": value for number, value in enumerate(used)}
    seen = leaks(secrets, shown | {"log at the end": worker.process.log.read_bytes()})
    assert not seen, "\n".join(seen)
    assert worker.log_text().count("\n") >= 6


@pytest.mark.parametrize("form", ["console", "json"])
def test_no_secret_is_seen_from_odd_places(scene: Scene, form: str) -> None:
    names = ("copy", "nested", "camera", "name", "key", "damaged list", "damaged object")
    secrets = {name: f"Zq{uuid4().hex}" for name in names}
    copied, nested, camera, named, keyed = scene.events(5)
    # The value under storage_secret once more, where its name doesn't tell.
    copied["data"] = {"storage_uri": scene.vault.url, "storage_access_key": "a", "storage_secret": secrets["copy"]}
    copied["payload"]["password"] = secrets["copy"]
    # Go writes & as \u0026, and here in JSON that is text in JSON.
    nested["message"] = json.dumps({"url": signed_url(secrets["nested"])}).replace("&", "\\u0026")
    camera["payload"]["metadata"]["event-instancename"] = signed_url(secrets["camera"])
    named[signed_url(secrets["name"])] = 1
    keyed["payload"]["key"] = signed_url(secrets["key"])
    damaged = [
        f'{{"storage_secret": ["{secrets["damaged list"]}"], oops'.encode(),
        f'{{"storage_keys": {{"a": "{secrets["damaged object"]}"}}, oops'.encode(),
    ]
    scene.send(copied, nested, camera, named, keyed, *damaged)
    worker = scene.worker(LOG_FORMAT=form)
    scene.await_results(keys_of([nested, camera, named]))
    scene.await_letters(4)
    scene.await_committed()
    shown = surfaces(scene, worker)
    assert worker.terminate() == 0
    seen = leaks(secrets, shown)
    assert not seen, "\n".join(seen)
