"""The whole worker as a process, started as hub-ml's users start it, on a real broker: recordings in, results out."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import jsonschema
import pytest
from confluent_kafka import Producer

from testbed.kafka import Broker
from testbed.process import wait_for
from testbed.service import environment
from tests.real.scene import IN_FLIGHT, WAIT_S, Scene, keys_of
from vaultml_worker import results
from vaultml_worker.queues import Ending
from vaultml_worker.queues.kafka.queue import KafkaQueue
from vaultml_worker.settings import load

WAYS_IN: dict[str, Callable[[Broker], dict[str, str]]] = {
    "SASL_PLAINTEXT, PLAIN": lambda _: {},
    "SASL_PLAINTEXT, SCRAM-SHA-512": lambda _: {"KAFKA_MECHANISM": "SCRAM-SHA-512"},
    "SASL_SSL": lambda broker: {
        "KAFKA_BROKER": broker.sasl_ssl,
        "KAFKA_SECURITY": "SASL_SSL",
        "KAFKA_MECHANISM": "SCRAM-SHA-256",
        "KAFKA_SSL_CA": str(broker.ca_file),
    },
    "SSL": lambda broker: {
        "KAFKA_BROKER": broker.ssl,
        "KAFKA_SECURITY": "SSL",
        "KAFKA_USERNAME": "",
        "KAFKA_PASSWORD": "",
        "KAFKA_SSL_CA": str(broker.ca_file),
    },
}


@pytest.mark.parametrize("way", WAYS_IN)
def test_each_recording_gives_one_result_over_each_way_in(kafka: Broker, scene: Scene, way: str) -> None:
    sent = scene.events(4)
    # What later versions and Hub put in: it comes back as it is, in its order.
    sent[1] = {"zeta": [1, 2.5, {"b": None, "a": "ü€\u2028😀"}], **sent[1], "traceId": "t-1", "alpha": {"z": 1, "a": 2}}
    sent[2]["payload"] |= {"duration": 1000, "deviceId": "d", "aaa": [[], {}, ""]}
    sent[3] |= {"operation": "event", "data": {"zone": "yard", "labels": ["old"]}, "vaultml": 1}
    scene.send(*sent)

    worker = scene.worker(**WAYS_IN[way](kafka)).wait_ready()
    scene.await_results(keys_of(sent))
    scene.await_committed()
    wait_for(lambda: worker.metrics()['vaultml_recordings_total{outcome="published"}'] == 4, WAIT_S, "the metrics")
    assert worker.terminate() == 0
    assert "stopped" in worker.log_text().splitlines()[-1]

    bodies = scene.target.bodies()
    assert scene.committed() == scene.queue.ends()
    assert len(bodies) == len(sent)
    given = {item["payload"]["key"]: item for item in sent}
    for body in bodies:
        result = json.loads(body)
        jsonschema.validate(result["vaultml"], results.schema())
        assert result["operation"] == "classification"
        ours = ("data", "operation", "vaultml")
        before = given[result["payload"]["key"]]
        unknown = {name: value for name, value in before.items() if name not in ours}
        first, *rest = unknown
        assert list(result) == [first, "data", *rest, "operation", "vaultml"]
        # As text, so that the order inside counts as well.
        assert json.dumps({name: result[name] for name in unknown}) == json.dumps(unknown)
        assert len({len(result["data"][name]) for name in ("probabilities", "labels", "boxes")}) == 1
        assert result["data"].get("zone") == before.get("data", {}).get("zone")
    # The footage has people in it.
    assert any("person" in frame for body in bodies for frame in json.loads(body)["data"]["labels"])
    assert scene.letters() == []


def test_kill_9_in_the_middle_of_200_recordings_loses_none(stage: Callable[..., Scene]) -> None:
    scene = stage(partitions=3)
    scene.create(scene.queue, scene.target, scene.dead)
    sent = scene.events(200)
    scene.send(*sent)
    first = scene.worker().wait_ready()
    wait_for(
        lambda: len(scene.target.messages()) >= 60 and sum(scene.committed().values()) >= 20,
        WAIT_S,
        "results and commits in the middle of the work",
        process=first.process,
    )
    first.kill()

    # Commits are looked at first: what they promise must be in the target.
    committed = scene.committed()
    there = set(scene.target.keys())
    assert 0 < sum(committed.values()) < 200
    promised = {
        json.loads(message.value() or b"")["payload"]["key"]
        for message in scene.queue.messages()
        if (message.offset() or 0) < committed[message.partition() or 0]
    }
    assert len(promised) == sum(committed.values())
    assert promised <= there

    second = scene.worker()
    scene.await_results(keys_of(sent))
    scene.await_committed()
    assert second.terminate() == 0
    found = scene.target.keys()
    assert set(found) == keys_of(sent)
    # Only what was in the first worker's hands may come twice.
    assert len(found) <= 200 + len(there) - sum(committed.values()) + IN_FLIGHT
    assert scene.letters() == []


def test_a_broker_that_restarts_in_the_middle_loses_nothing(kafka: Broker, stage: Callable[..., Scene]) -> None:
    scene = stage(partitions=3)
    scene.create(scene.queue, scene.target, scene.dead)
    sent = scene.events(60)
    scene.vault.allow(20)
    scene.send(*sent)
    worker = scene.worker().wait_ready()
    wait_for(lambda: len(scene.target.messages()) >= 10, WAIT_S, "first results", process=worker.process)
    kafka.stop()
    try:
        # What is finished while the broker is away must not be lost either.
        scene.vault.allow(10)
        waiting = "vaultml_in_flight"
        wait_for(
            lambda: worker.metrics()[waiting] >= 5, WAIT_S, "results that wait for the broker", process=worker.process
        )
    finally:
        kafka.start()
    scene.vault.allow(None)
    scene.await_results(keys_of(sent))
    scene.await_committed()
    assert worker.ready()
    assert worker.terminate() == 0
    assert scene.letters() == []


def test_without_a_target_nothing_is_published_but_all_is_committed(stage: Callable[..., Scene]) -> None:
    scene = stage()
    scene.create(scene.queue, scene.dead_without_target)
    sent = scene.events(3)
    scene.send(*sent[:2], b"{", sent[2])
    worker = scene.worker(QUEUE_TARGET="")
    [letter] = scene.await_letters(1, scene.dead_without_target)
    assert letter.place == (scene.queue.name, 0, 2)
    scene.await_committed()
    assert worker.terminate() == 0
    assert "QUEUE_TARGET is empty" in worker.log_text()
    assert not scene.target.exists()
    assert not scene.dead.exists()
    assert all(key in worker.log_text() for key in keys_of(sent))


def test_a_second_worker_may_join_and_leave_during_the_work(stage: Callable[..., Scene]) -> None:
    scene = stage(partitions=3)
    scene.create(scene.queue, scene.target, scene.dead)
    sent = scene.events(90)
    published = 'vaultml_recordings_total{outcome="published"}'
    scene.vault.allow(10)
    scene.send(*sent)
    first = scene.worker().wait_ready()
    wait_for(lambda: first.metrics()[published] >= 5, WAIT_S, "first results", process=first.process)

    second = scene.worker().wait_ready()
    shared = [1, 2]
    wait_for(
        lambda: sorted(len(mine) for mine in scene.members().values()) == shared,
        WAIT_S,
        "both to have partitions",
        process=second.process,
    )
    scene.vault.allow(30)
    wait_for(lambda: second.metrics()[published] >= 5, WAIT_S, "the second's results", process=second.process)
    second.signal(signal.SIGTERM)
    scene.vault.allow(None)
    assert second.wait() == 0

    scene.await_results(keys_of(sent), first)
    wait_for(lambda: list(scene.members().values()) == [{0, 1, 2}], WAIT_S, "the first to have all again")
    more = scene.events(3)
    scene.send(*more)
    scene.await_results(keys_of(more), first)
    wait_for(lambda: scene.committed() == scene.queue.ends(), WAIT_S, "all to be committed", process=first.process)
    assert first.terminate() == 0
    assert scene.letters() == []


class Silent:
    """An observer that ignores what it is told."""

    def trouble(self, sentence: str) -> None: ...

    def ended(self, ending: Ending) -> None: ...


def test_members_that_come_and_go_make_no_duplicates(
    stage: Callable[..., Scene], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is published is done, also for the next owner of the partition, however late the broker acknowledges."""
    monkeypatch.setattr(
        "vaultml_worker.queues.kafka.outbox.Producer", lambda config: Producer(config | {"linger.ms": 100})
    )
    scene = stage(partitions=8)
    scene.create(scene.queue, scene.target)
    sent = [b"%d" % number for number in range(6000)]
    scene.send(*sent)
    for name, value in scene.environment().items():
        monkeypatch.setenv(name, value)
    settings = load()
    guest, moved, done = threading.Event(), threading.Event(), threading.Event()

    def member(leaves: threading.Event) -> None:
        queue = KafkaQueue(settings.names, settings.queue, Silent())  # type: ignore[arg-type]
        while not leaves.is_set():
            if message := queue.receive(0.02):
                queue.publish(message, message.body)
                moved.wait(0.005)  # until then there is always something to do, and something not acknowledged
        queue.close(WAIT_S)

    def spread(members: int) -> bool:
        found = scene.members()
        return len(found) == members and all(found.values())

    with ThreadPoolExecutor() as pool:
        try:
            members = []
            for number in range(3):
                members.append(pool.submit(member, guest if number == 2 else done))
                wait_for(partial(spread, number + 1), WAIT_S, "all members to have partitions")
            guest.set()
            wait_for(partial(spread, 2), WAIT_S, "the others to have all again")
            moved.set()
            wait_for(lambda: scene.committed() == scene.queue.ends(), WAIT_S, "all to be committed")
        finally:
            for event in (guest, moved, done):
                event.set()
        for each in members:
            each.result(WAIT_S)
    assert sorted(scene.target.bodies()) == sorted(sent)


@pytest.mark.parametrize("group", [False, True], ids=["worker alone", "with its decoders"])
def test_sigterm_finishes_what_is_in_work(scene: Scene, group: bool) -> None:
    sent = scene.events(IN_FLIGHT + 6)
    scene.vault.allow(2)
    scene.send(*sent)
    first = scene.worker().wait_ready()
    wait_for(lambda: len(scene.vault.asked) == IN_FLIGHT + 2, WAIT_S, "work at the gate", process=first.process)
    first.signal(signal.SIGTERM, group=group)
    scene.vault.allow(None)
    assert first.wait() == 0
    assert "stopped" in first.log_text().splitlines()[-1]
    in_work = set(scene.vault.asked)
    assert set(scene.target.keys()) == in_work
    assert sum(scene.committed().values()) == len(in_work) == IN_FLIGHT + 2

    second = scene.worker()
    scene.await_results(keys_of(sent))
    scene.await_committed()
    assert second.terminate() == 0
    assert len(scene.target.keys()) == len(sent)  # an orderly end makes no duplicates
    assert scene.letters() == []


@pytest.mark.parametrize("killed", ["decoders", "all that the worker started"])
def test_killed_decoders_cost_no_recording(scene: Scene, killed: str) -> None:
    sent = scene.events(IN_FLIGHT + 6)
    scene.vault.allow(2)
    scene.send(*sent)
    worker = scene.worker().wait_ready()
    wait_for(lambda: len(scene.vault.asked) == IN_FLIGHT + 2, WAIT_S, "work at the gate", process=worker.process)
    # As the kernel does when memory runs out. Decoders are started by a process that the worker started for it.
    parents = worker.started()
    decoders = [pid for pid, parent in parents.items() if parent != worker.pid]
    assert decoders
    for pid in decoders if killed == "decoders" else parents:
        os.kill(pid, signal.SIGKILL)
    scene.vault.allow(None)

    def done() -> bool:
        found = set(scene.target.keys())
        return worker.returncode is not None or keys_of(sent) <= found or bool(scene.letters())

    # It may also end: then another takes over, as in Kubernetes.
    wait_for(done, WAIT_S, "results of all, or the worker's end")
    assert scene.letters() == []
    if worker.returncode is not None:
        assert worker.returncode > 0
        worker = scene.worker()
        scene.await_results(keys_of(sent))
    scene.await_committed()
    assert scene.letters() == []
    assert worker.terminate() == 0


def test_the_results_command_prints_one_line_per_result(scene: Scene) -> None:
    sent = scene.events(3)
    scene.send(*sent)
    worker = scene.worker()
    scene.await_results(keys_of(sent))
    assert worker.terminate() == 0
    command = [sys.executable, "-m", "vaultml_worker", "results"]
    variables = environment(scene.environment())
    shown = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=WAIT_S, check=True)
    lines = shown.stdout.splitlines()
    assert len(lines) == len(sent)
    for key in keys_of(sent):
        [line] = [line for line in lines if line.endswith(key)]
        assert line.startswith("2021-09-02 07:26:31  gate_north  ")
        assert "1 of 1 frames" in line
