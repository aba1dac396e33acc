"""What a worker on a real broker does when something is wrong: waits, says what to do, and loses nothing."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme
from confluent_kafka.admin import AdminClient

from testbed.kafka import Broker
from testbed.process import LOOPBACK, free_port, wait_for
from tests.real.scene import ACCOUNT, IN_FLIGHT, QUIET, STRANGER, WAIT_S, Scene, event, keys_of, unready
from vaultml_worker.queues.kafka.queue import MOST_UNSENT


def test_a_wrong_password_is_named_and_waited_for(scene: Scene) -> None:
    worker = scene.worker(KAFKA_PASSWORD="wr0ng!@#$%pass")
    worker.wait_log("authentication failed: check KAFKA_USERNAME")
    assert unready(worker)
    assert worker.terminate() == 0
    assert "wr0ng" not in worker.log_text()
    assert "Traceback" not in worker.log_text()


@pytest.mark.parametrize("variable", ["QUEUE_NAME", "QUEUE_TARGET"])
def test_a_missing_topic_is_named_and_waited_for(stage: Callable[..., Scene], variable: str) -> None:
    scene = stage()
    missing, other = (scene.queue, scene.target) if variable == "QUEUE_NAME" else (scene.target, scene.queue)
    scene.create(other)
    sent = scene.events(2)
    worker = scene.worker()
    worker.wait_log(f"topic {missing.name} ({variable}): the topic does not exist: create it")
    assert unready(worker)
    assert not missing.exists()

    scene.create(missing)
    worker.wait_ready()
    scene.send(*sent)
    scene.await_results(keys_of(sent))
    assert worker.terminate() == 0


def test_an_untrusted_certificate_is_named_and_waited_for(kafka: Broker, scene: Scene, tmp_path: Path) -> None:
    stranger = tmp_path / "stranger.pem"
    trustme.CA().cert_pem.write_to_path(stranger)
    worker = scene.worker(KAFKA_BROKER=kafka.sasl_ssl, KAFKA_SECURITY="SASL_SSL", KAFKA_SSL_CA=str(stranger))
    worker.wait_log("TLS failed: check that KAFKA_SSL_CA")
    assert unready(worker)
    assert worker.terminate() == 0


def test_a_broker_that_is_away_is_named_and_waited_for(kafka: Broker, scene: Scene) -> None:
    sent = scene.events(2)
    scene.send(*sent)
    nobody = scene.worker(KAFKA_BROKER=f"{LOOPBACK}:{free_port()}")
    kafka.stop()
    try:
        worker = scene.worker()
        for one in (nobody, worker):
            one.wait_log("not reachable: check KAFKA_BROKER")
            assert unready(one)
    finally:
        kafka.start()
    worker.wait_ready()
    scene.await_results(keys_of(sent))
    assert worker.terminate() == 0
    assert unready(nobody)
    assert nobody.terminate() == 0


def test_a_vault_outage_is_waited_for_in_the_group(scene: Scene) -> None:
    outage_s = 31  # beyond the group's session timeout
    sent = scene.events(12)
    scene.vault.stop()
    scene.send(*sent)
    worker = scene.worker().wait_ready()
    members = wait_for(scene.members, WAIT_S, "the group to have its member")
    assert list(members.values()) == [{0}]
    retries = 'vaultml_retries_total{cause="unavailable"}'
    end = time.monotonic() + outage_s

    def over() -> bool:
        assert worker.ready()
        return time.monotonic() > end and worker.metrics().get(retries, 0) >= IN_FLIGHT

    wait_for(over, 2 * outage_s, "the end of the outage", process=worker.process)
    assert scene.members() == members
    assert sum(scene.committed().values()) == 0
    assert "retrying in" in worker.log_text()

    scene.vault.start()
    scene.await_results(keys_of(sent))
    scene.await_committed()
    assert scene.members() == members
    assert worker.terminate() == 0
    assert len(scene.target.keys()) == len(sent)
    assert scene.letters() == []


def test_what_can_never_work_becomes_a_dead_letter_and_the_queue_moves_on(scene: Scene) -> None:
    good = scene.events(3)
    refused, no_video = scene.events(2)
    gone = json.dumps(event("youruser/gone.mp4", 1), indent=3).replace(":", " : ").encode()
    message_keys = {"storage_access_key": "message-access!1", "storage_secret": "message-secret!2"}
    refused["data"] = {"storage_uri": scene.vault.url, **message_keys, "zone": "yard"}
    no_video["payload"]["key"] = "youruser/text.mp4"
    path = Path(scene.vault._folder) / ACCOUNT.provider / "youruser/text.mp4"
    path.write_bytes(b"no video at all" * 100)
    bad = [b'{"payload": {"key": "a/b.mp4"', b"\xff\xfe\x00\x01", b"[1, 2]", b'{"payload": 1}', None]
    scene.send(good[0], gone, good[1], refused, no_video, *bad, good[2])

    worker = scene.worker()
    scene.await_results(keys_of(good))
    letters = scene.await_letters(7)
    scene.await_committed()
    assert worker.returncode is None

    assert [letter.cause for letter in letters] == [
        "not-found",
        "event-unauthorized",
        "not-a-video",
        *4 * ["bad-event"],
    ]
    assert [letter.place for letter in letters] == [(scene.queue.name, 0, n) for n in (1, 3, 4, 5, 6, 7, 8)]
    assert all(letter.headers["vaultml-error"] for letter in letters)
    assert letters[0].body == gone
    assert json.loads(letters[2].body) == no_video
    assert [letter.body for letter in letters[3:]] == bad[:-1]
    # A tombstone is skipped and committed.
    assert worker.metrics()['vaultml_recordings_total{outcome="skipped"}'] == 1
    # Without the values of the message's own credentials, but with all the rest.
    left = json.loads(letters[1].body)
    assert left["data"]["zone"] == "yard"
    assert left | {"data": 0} == refused | {"data": 0}
    for text in (letters[1].body.decode(), str(letters[1].headers), worker.log_text()):
        assert not [value for value in message_keys.values() if value in text]
    assert worker.metrics()['vaultml_dead_letters_total{cause="bad-event"}'] == 4
    assert worker.terminate() == 0
    assert len(scene.target.keys()) == len(good)


def test_large_nonsense_does_not_hold_up_the_worker(scene: Scene) -> None:
    # Nearly the 1 MB that Kafka takes, of what a search for credentials could stumble over.
    starts = (b"\\", b"http://a?", b"storage_", b'storage_a:\\"', b"storage_a=\\", b" ", b"&amp;", b"\\u0026")
    bad = [start * (900_000 // len(start)) for start in starts]
    good = scene.events(1)
    scene.send(*bad, *good)
    worker = scene.worker()
    letters = scene.await_letters(len(bad))
    assert {letter.cause for letter in letters} == {"bad-event"}
    scene.await_results(keys_of(good))
    scene.await_committed()
    assert worker.terminate() == 0


def test_a_missing_dead_letter_topic_is_made(stage: Callable[..., Scene]) -> None:
    scene = stage()
    scene.create(scene.queue, scene.target)
    good = scene.events(1)
    scene.send(b"{", *good)
    worker = scene.worker()
    assert [letter.body for letter in scene.await_letters(1)] == [b"{"]
    scene.await_committed()
    scene.await_results(keys_of(good))
    assert worker.terminate() == 0


def test_own_credentials_that_are_refused_hold_everything(scene: Scene) -> None:
    scene.vault.stop()
    scene.vault.start(STRANGER)
    sent = scene.events(6)
    scene.send(*sent)
    worker = scene.worker()
    worker.wait_log("check VAULT_ACCESS_KEY and VAULT_SECRET_KEY")
    refused = 'vaultml_retries_total{cause="unauthorized"}'
    wait_for(lambda: worker.metrics().get(refused, 0) >= 2 * IN_FLIGHT, WAIT_S, "retries", process=worker.process)
    assert sum(scene.committed().values()) == 0
    assert scene.letters() == []

    scene.vault.stop()
    scene.vault.start()
    scene.await_results(keys_of(sent))
    scene.await_committed()
    assert worker.terminate() == 0
    assert scene.letters() == []
    for secret in (ACCOUNT.access_key, ACCOUNT.secret_key):
        assert secret not in worker.log_text()


def test_a_target_that_vanishes_holds_its_results_and_then_the_queue(kafka: Broker, scene: Scene) -> None:
    """Some hundred results wait for their topic; for more than that no event is taken. Nothing is lost."""
    worker = scene.worker().wait_ready()
    admin = AdminClient({"bootstrap.servers": kafka.plaintext, **QUIET})
    admin.delete_topics([scene.target.name])[scene.target.name].result(timeout=20)
    wait_for(lambda: not scene.target.exists(), WAIT_S, "the target to be gone")
    sent = scene.events(MOST_UNSENT + 30)
    scene.send(*sent)
    waiting = "vaultml_in_flight"
    wait_for(lambda: worker.metrics()[waiting] >= MOST_UNSENT, WAIT_S, "results to wait", process=worker.process)
    worker.wait_log(f"topic {scene.target.name}: the topic does not exist")
    assert worker.metrics()[waiting] <= MOST_UNSENT + IN_FLIGHT
    # Nothing counts as published before it is.
    assert worker.metrics()['vaultml_recordings_total{outcome="published"}'] == 0
    assert set(scene.committed().values()) == {0}
    scene.create(scene.target)
    scene.await_results(keys_of(sent))
    scene.await_committed()
    assert worker.terminate() == 0
