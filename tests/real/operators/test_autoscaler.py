"""The autoscaler on a real API server, scheduler and broker: what waits, the GPUs there are, and what people see."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from confluent_kafka import TopicPartition

from testbed.kafka import Broker
from testbed.kubernetes import Cluster
from testbed.operator import Operator, Pipelines
from testbed.process import wait_for
from tests.real.operators.lagging import (
    Farm,
    Queue,
    body,
    polls,
    scaling,
    wait_scaling,
    wait_workers,
    workers,
)


@pytest.fixture
def queue(kafka: Broker) -> Queue:
    return Queue(kafka)


@pytest.fixture
def farm(crds: Cluster) -> Iterator[Farm]:
    made = Farm(crds)
    yield made
    made.remove()


def test_from_zero_straight_to_what_is_needed_and_back(queue: Queue, farm: Farm, pipelines: Pipelines) -> None:
    farm.add(8)
    pipelines.apply(body(queue, farm, minReplicas=0, cooldownSeconds=3))
    pipelines.wait("p", "ScaledToZero")
    # Seen all at once: a poll that comes while they are being poured would find a part.
    pipelines.kubectl("annotate", "vmlp", "p", "ml.kerberos.io/pause-scale-out=true")
    queue.pour(55)
    wait_scaling(pipelines, lag=55, limitedBy="paused")
    pipelines.kubectl("annotate", "vmlp", "p", "ml.kerberos.io/pause-scale-out-")
    wait_workers(pipelines, 6)
    said = wait_scaling(pipelines, lag=55, desiredReplicas=6, partitions=8)
    assert "lag 55" in said["message"]
    assert said["neededReplicas"] == 6
    # Never a step between: one ReplicaSet was scaled once.
    outs = [note for _, reason, note in pipelines.wait_event("p", "ScaledOut") if reason == "ScaledOut"]
    assert len(outs) == 1
    assert outs[0].startswith("from 0 to 6 workers: lag 55")
    row = dict(zip(*(line.split() for line in pipelines.kubectl("get", "pipelines").splitlines()), strict=False))
    assert (row["DESIRED"], row["LAG"]) == ("6", "55")
    assert "OLDEST" in pipelines.kubectl("get", "pipelines", "-o", "wide")
    queue.commit()
    pipelines.wait("p", "ScaledToZero")
    assert workers(pipelines) == 0
    said = wait_scaling(pipelines, lag=0, desiredReplicas=0)
    assert said["processed"] == 55
    assert [reason for _, reason, _ in pipelines.wait_event("p", "ScaledToZero", 2) if reason.startswith("Scaled")][
        -2:
    ] == [
        "ScaledIn",
        "ScaledToZero",
    ]


def test_partitions_are_the_bound_until_they_are_raised(kafka: Broker, farm: Farm, pipelines: Pipelines) -> None:
    queue = Queue(kafka, partitions=2)
    farm.add(8)
    pipelines.apply(body(queue, farm))
    queue.pour(60)
    wait_workers(pipelines, 2)
    limited = pipelines.wait("p", "TooFewPartitions", "ScalingLimited")
    assert "kafka.ensurePartitions" in limited["message"]
    assert "kafka.ensurePartitions" in pipelines.kubectl("describe", "vmlp", "p")
    more = body(queue, farm)
    more["spec"]["queue"]["kafka"]["ensurePartitions"] = 5
    pipelines.apply(more)
    wait_workers(pipelines, 5)
    raised = ("Normal", "PartitionsRaised", f"raised the topic {queue.name} from 2 to 5 partitions")
    wait_for(lambda: raised in pipelines.events("p"), 30, "the Event")


def test_a_gpu_added_or_lost_counts_from_the_next_poll(
    queue: Queue, farm: Farm, pipelines: Pipelines, crds: Cluster
) -> None:
    first = farm.add(2)
    pipelines.apply(body(queue, farm))
    queue.pour(60)
    wait_workers(pipelines, 2)
    said = pipelines.wait("p", "GpusTaken", "ScalingLimited")["message"]
    assert "2 of 2 GPUs (nvidia.com/gpu)" in said
    second = farm.add(2)
    wait_workers(pipelines, 4)
    pipelines.wait("p", "Running")
    # A cordon takes nothing away from what runs, and gives nothing to what doesn't.
    crds.kubectl("cordon", second.name)
    farm.add(1)
    wait_workers(pipelines, 5)
    crds.kubectl("uncordon", second.name)
    first.remove()
    wait_workers(pipelines, 3, timeout=120)
    assert not [pod for pod in pipelines.all("pods") if pod["status"]["phase"] == "Pending"]


def test_what_others_hold_is_not_there(queue: Queue, farm: Farm, pipelines: Pipelines) -> None:
    farm.add(4)
    spec: dict[str, Any] = {
        **{name: farm.worker[name] for name in ("nodeSelector", "tolerations")},
        "containers": [{"name": "c", "image": "busybox", "resources": {"limits": {"nvidia.com/gpu": "3"}}}],
    }
    foreign = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "training"}, "spec": spec}
    pipelines.kubectl("apply", "-f", "-", stdin=json.dumps(foreign))
    pipelines.kubectl("wait", "pod/training", "--for=condition=Ready", "--timeout=30s")
    pipelines.apply(body(queue, farm))
    queue.pour(60)
    said = wait_scaling(pipelines, desiredReplicas=1, limitedBy="gpus")
    assert "others hold 3" in said["heldBy"]
    pipelines.kubectl("delete", "pod", "training")
    wait_workers(pipelines, 4)


def test_two_that_want_the_same_gpus_share_them_and_are_told_so(
    kafka: Broker, farm: Farm, pipelines: Pipelines
) -> None:
    farm.add(4)
    a, b = Queue(kafka), Queue(kafka)
    pipelines.apply(body(a, farm, "a"))
    a.pour(80)
    wait_workers(pipelines, 4, "a")
    pipelines.wait("a", "Running")
    pipelines.apply(body(b, farm, "b"))
    b.pour(80)
    wait_workers(pipelines, 2, "a", timeout=120)
    wait_workers(pipelines, 2, "b", timeout=120)

    def told(name: str, words: str) -> None:
        words = f"{pipelines.namespace}/{words}"
        wait_for(lambda: words in scaling(pipelines, name).get("heldBy", ""), 60, f"{name} to be told {words}")

    told("b", "a holds 2")
    assert scaling(pipelines, "b")["limitedBy"] == "gpus"
    # Priority goes before shares.
    pipelines.apply(body(b, farm, "b", priority=10))
    wait_workers(pipelines, 4, "b", timeout=120)
    wait_workers(pipelines, 0, "a", timeout=120)
    told("a", "b holds 4")


def test_advice_is_given_and_not_followed(queue: Queue, farm: Farm, pipelines: Pipelines) -> None:
    farm.add(8)
    queue.pour(60)
    advisory = body(queue, farm, mode="Advisory")
    pipelines.apply(advisory | {"spec": advisory["spec"] | {"replicas": 2}})
    said = wait_scaling(pipelines, desiredReplicas=6)
    assert workers(pipelines) == 2
    assert said["neededReplicas"] == 6
    message = pipelines.condition("p", "ScalingLimited")["message"]
    assert message.startswith("spec.replicas is used in Advisory mode; Auto: lag 60")
    pipelines.kubectl("scale", "vmlp/p", "--replicas=3")
    wait_workers(pipelines, 3)


def test_an_hpa_may_own_the_number_in_manual_mode(queue: Queue, farm: Farm, pipelines: Pipelines) -> None:
    farm.add(8)
    pipelines.apply(body(queue, farm, mode="Manual"))
    pipelines.wait("p", "Running")
    # There is no metrics server here: below its minimum an HPA acts without one.
    pipelines.kubectl("autoscale", "vmlp/p", "--min=3", "--max=5", "--cpu=50%")
    wait_workers(pipelines, 3, timeout=60)
    pipelines.wait("p", "Running")


def test_in_auto_spec_replicas_does_not_count_and_says_so(queue: Queue, farm: Farm, pipelines: Pipelines) -> None:
    farm.add(8)
    pipelines.apply(body(queue, farm))
    pipelines.wait("p", "Running")
    pipelines.kubectl("scale", "vmlp/p", "--replicas=4")
    pipelines.wait_event("p", "ReplicasIgnored")
    assert workers(pipelines) == 1


def test_annotations_pause_either_direction(queue: Queue, farm: Farm, pipelines: Pipelines, operator: Operator) -> None:
    farm.add(8)
    pipelines.apply(body(queue, farm))
    queue.pour(40)
    wait_workers(pipelines, 4)
    pipelines.kubectl("annotate", "vmlp", "p", "ml.kerberos.io/pause-scale-in=true")
    queue.commit()
    wait_scaling(pipelines, lag=0, limitedBy="paused")
    polls(pipelines, operator)
    assert workers(pipelines) == 4
    pipelines.kubectl("annotate", "vmlp", "p", "ml.kerberos.io/pause-scale-in-", "ml.kerberos.io/pause-scale-out=true")
    wait_workers(pipelines, 1)
    queue.pour(40)
    wait_scaling(pipelines, lag=40, limitedBy="paused")
    assert pipelines.condition("p", "ScalingLimited")["reason"] == "ScalingPaused"
    polls(pipelines, operator)
    assert workers(pipelines) == 1
    pipelines.kubectl("annotate", "vmlp", "p", "ml.kerberos.io/pause-scale-out-")
    wait_workers(pipelines, 4)


def test_the_idlest_workers_go_first(kafka: Broker, farm: Farm, pipelines: Pipelines) -> None:
    queue = Queue(kafka, partitions=4)
    farm.add(4)
    pipelines.apply(body(queue, farm))
    queue.pour(40)
    # Not "Running": so it may be with fewer, if a poll came while they were being poured.
    wait_for(lambda: pipelines.condition("p").get("message") == "4 of 4 workers ready", 60, "four workers")
    names = sorted(pod["metadata"]["name"] for pod in pipelines.all("pods"))
    members = {name: queue.member(name) for name in names}
    try:

        def shared_out() -> bool:
            for each in members.values():
                each.poll(0.1)
            return all(len(each.assignment()) == 1 for each in members.values())

        try:
            wait_for(shared_out, 60, "a partition for each worker")
        except TimeoutError as error:
            group = queue.admin.describe_consumer_groups([queue.group])[queue.group].result(30)
            error.add_note(f"{group.state}, {[each.assignment() for each in members.values()]}")
            raise
        owner = {each.assignment()[0].partition: name for name, each in members.items()}
        # Only one has anything left to do, from one moment to the next: on the way there, others are as idle as it is.
        done = [
            members[owner[2]].get_watermark_offsets(TopicPartition(queue.name, number), timeout=10)[1]
            for number in owner
        ]
        places = [
            TopicPartition(queue.name, number, end) for number, end in zip(owner, done, strict=True) if number != 2
        ]
        members[owner[2]].commit(offsets=places, asynchronous=False)

        def left() -> bool:
            for each in members.values():
                each.poll(0.05)
            return workers(pipelines) == 1 and len(pipelines.all("pods")) == 1

        wait_for(left, 60, "one worker to be left")
    finally:
        for each in members.values():
            each.close()
    assert pipelines.all("pods")[0]["metadata"]["name"] == owner[2]


def test_two_pipelines_on_one_group_are_refused_with_a_sentence(queue: Queue, farm: Farm, pipelines: Pipelines) -> None:
    farm.add(4)
    pipelines.apply(body(queue, farm, "elder"))
    pipelines.wait("elder", "Running")
    pipelines.apply(body(queue, farm, "younger"))
    said = pipelines.wait("younger", "GroupTaken")
    assert f"the pipeline {pipelines.namespace}/elder consumes with the group {queue.group}" in said["message"]
    assert pipelines.get("deployment", "younger") is None
    assert pipelines.condition("elder")["reason"] == "Running"
    pipelines.kubectl("delete", "vmlp", "elder")
    pipelines.wait("younger", "Running")


def test_explain_says_what_was_decided_and_what_would_be(
    queue: Queue, farm: Farm, pipelines: Pipelines, crds: Cluster
) -> None:
    farm.add(3)
    pipelines.apply(body(queue, farm))
    queue.pour(60)
    wait_scaling(pipelines, desiredReplicas=3, limitedBy="gpus")

    def explain(*arguments: str) -> str:
        command = [sys.executable, "-m", "vaultml_operator", "explain", "p", "-n", pipelines.namespace, *arguments]
        env = {"PATH": os.environ["PATH"], "KUBECONFIG": str(crds.kubeconfig)}
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=60)
        return done.stdout if done.returncode == 0 else done.stderr

    said = explain()
    assert f"{pipelines.namespace}/p, mode Auto" in said
    assert "lag         60" in said
    assert "GPUs for 3 workers" in said
    assert "3 workers: lag 60" in said
    supposed = explain("--what-if", "lag=500,gpus=2")
    assert "assuming lag=500, gpus=2" in supposed
    assert "2 workers: lag 500" in supposed
    assert "names are lag" in explain("--what-if", "lags=5")


def test_events_about_to_be_deleted_by_the_broker_are_a_warning(
    kafka: Broker, farm: Farm, pipelines: Pipelines
) -> None:
    queue = Queue(kafka, partitions=1, retention_ms="600000")
    farm.add(1)
    queue.pour(3, timestamp=int((time.time() - 500) * 1000))
    pipelines.apply(body(queue, farm))
    said = pipelines.wait("p", "EventsExpire", "EventsExpiring")
    assert said["status"] == "True"
    assert "the topic keeps events for 10m" in said["message"]
    warning = ("Warning", "EventsExpire")
    wait_for(lambda: warning in {each[:2] for each in pipelines.events("p")}, 30, "the Event")
    queue.commit()
    pipelines.wait("p", "WithinRetention", "EventsExpiring")


def test_a_status_is_not_written_while_its_picture_stays(
    queue: Queue, farm: Farm, pipelines: Pipelines, operator: Operator
) -> None:
    farm.add(4)
    pipelines.apply(body(queue, farm))
    queue.pour(30)
    wait_workers(pipelines, 3)
    pipelines.wait("p", "Running")
    polls(pipelines, operator, 10)

    def version() -> str:
        found = pipelines.get("vmlp", "p")
        assert found is not None
        return str(found["metadata"]["resourceVersion"])

    # Its age goes on growing, by less and less of itself.
    wait_for(lambda: (scaling(pipelines).get("oldestMessageAgeSeconds") or 0) >= 20, 60, "an age that hardly changes")
    before = version()
    polls(pipelines, operator, 1)
    assert version() == before
