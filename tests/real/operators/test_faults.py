"""What goes wrong around the operator itself: its end, its rivals, its API server. Nothing is lost, nothing doubled."""

import copy
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from testbed import kubernetes
from testbed.kafka import Broker
from testbed.kubernetes import Cluster, gpus
from testbed.kubernetes.proxy import Proxy, Request, Spoil
from testbed.operator import Operator, Pipelines, grant
from testbed.process import wait_for
from testbed.product import images
from tests.parts import need
from tests.real.operators.test_reconcile import body, topic
from vaultml_operator import crd, install

_WATCHED = ("/api/v1/nodes", "/api/v1/pods")


@pytest.fixture(scope="module")
def alone() -> Iterator[Cluster]:
    """A control plane with our CRD, the operator's rights and a node in name only; no operator."""
    need(kubernetes.available())
    with Cluster(images=images()) as cluster:
        cluster.apply(crd.definition())
        grant(cluster)
        cluster.node("hollow", hollow=True, **gpus.whole(64))
        yield cluster


@pytest.fixture
def here(alone: Cluster, kafka: Broker) -> Iterator[Pipelines]:
    topic(kafka)
    name = f"t-{uuid4().hex[:8]}"
    alone.kubectl("create", "namespace", name)
    yield Pipelines(alone, name)
    alone.kubectl("delete", "namespace", name, "--wait=false")


def holder(cluster: Cluster) -> str:
    lease = cluster.get(f"/apis/coordination.k8s.io/v1/namespaces/{install.NAMESPACE}/leases/vaultml-operator")
    return str(lease["spec"].get("holderIdentity") or "")


def test_a_standby_takes_over_after_a_crash_and_at_once_after_a_clean_end(
    alone: Cluster, here: Pipelines, kafka: Broker, tmp_path: Path
) -> None:
    with Operator(alone, tmp_path / "1") as first:
        first.wait_ready().wait_leads()
        with Operator(alone, tmp_path / "2") as second:
            second.wait_ready()
            here.apply(body(kafka))
            here.wait("p", "Running")
            assert not second.leads
            assert second.metrics().get('vaultml_operator_api_requests_total{code="200",verb="patch"}') is None
            crashed = time.monotonic()
            first.kill()
            second.wait_leads(20)
            assert time.monotonic() - crashed <= 20
            here.kubectl("scale", "vmlp/p", "--replicas=2")
            wait_for(lambda: here.condition("p")["message"] == "2 of 2 workers ready", 20, "two workers")
            with Operator(alone, tmp_path / "3") as third:
                third.wait_ready()
                assert second.terminate() == 0
                ended = time.monotonic()
                third.wait_leads(3)
                assert time.monotonic() - ended <= 3
                assert third.leads
                assert holder(alone)
                assert "vaultml-operator" in alone.kubectl("get", "lease", "-n", install.NAMESPACE)


def test_a_leader_that_was_stopped_writes_nothing_when_it_wakes_up(
    alone: Cluster, here: Pipelines, kafka: Broker, tmp_path: Path
) -> None:
    with Proxy(alone) as proxy, Operator(alone, tmp_path / "1", server=proxy.url) as first:
        first.wait_ready().wait_leads()
        here.apply(body(kafka))
        here.wait("p", "Running")
        with Operator(alone, tmp_path / "2") as second:
            second.wait_ready()
            first.signal(signal.SIGSTOP)
            second.wait_leads(30)
            before = len(proxy.writes)
            here.kubectl("scale", "vmlp/p", "--replicas=2")  # an event that the stopped one finds when it wakes up
            wait_for(lambda: here.condition("p")["message"] == "2 of 2 workers ready", 20, "two workers")
            first.signal(signal.SIGCONT)
            assert first.wait(30) == 1
            assert len(proxy.writes) - before <= 1
            assert second.leads


@pytest.mark.parametrize("moment", ["before the apply", "after the apply", "before the scale"])
def test_killed_in_the_middle_of_creating(
    moment: str, alone: Cluster, here: Pipelines, kafka: Broker, tmp_path: Path
) -> None:
    """Held at that moment, shot there; the next one ends at the same children, and 0 stays 0 all the time."""
    reached, never = threading.Event(), threading.Event()

    def rule(request: Request) -> Spoil | None:
        scaling = request.path.endswith("/deployments/p/scale")
        if request.method == "PATCH" and (
            scaling if moment == "before the scale" else request.path.endswith("/deployments/p")
        ):
            reached.set()
            return Spoil(hold=never, done=moment == "after the apply")
        return None

    with Proxy(alone, rule) as proxy, Operator(alone, tmp_path / "1", server=proxy.url) as first:
        first.wait_ready().wait_leads()
        here.apply(body(kafka, replicas=0))
        wait_for(reached.is_set, 20, "the moment")
        if moment == "after the apply":
            wait_for(lambda: here.get("deployment", "p"), 10, "the Deployment")
        first.kill()
        never.set()
    with Operator(alone, tmp_path / "2") as second:
        second.wait_ready()
        here.wait("p", "ScaledToZero", timeout=60)
        assert [each["metadata"]["name"] for each in here.all("deployment,pdb")] == ["p", "p"]
        made = [each for each in here.all("events") if each["reason"] == "SuccessfulCreate"]
        assert made == [], "a pod appeared"
        here.kubectl("scale", "vmlp/p", "--replicas=1")
        here.wait("p", "Running")


def test_refusals_conflicts_and_lost_answers_delay_but_never_stop_it(
    alone: Cluster, here: Pipelines, kafka: Broker, tmp_path: Path
) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")  # noqa: T201 - shown when it fails
    dice = random.Random(seed)
    kinds = (
        Spoil(status=429, retry_after=1),
        Spoil(status=409),
        Spoil(status=500),
        Spoil(status=503),
        Spoil(),
        Spoil(done=True),
    )

    def rule(request: Request) -> Spoil | None:
        if request.watch or "/leases" in request.path or here.namespace not in request.path:
            return None
        return dice.choice(kinds) if dice.random() < 0.1 else None

    with Proxy(alone, rule) as proxy, Operator(alone, tmp_path / "1", server=proxy.url) as operator:
        operator.wait_ready().wait_leads()
        for replicas in (1, 3, 0, 2):
            here.apply(body(kafka, replicas=replicas, detection={"threshold": 0.3 + replicas / 10}))
            said = f"{replicas} of {replicas} workers ready"
            words = {said, "0 workers: replicas is 0"} if replicas == 0 else {said}
            wait_for(lambda words=words: here.condition("p").get("message") in words, 100, said)  # type: ignore[misc]
        assert operator.process.returncode is None


def test_a_short_outage_ends_nothing(alone: Cluster, here: Pipelines, kafka: Broker, tmp_path: Path) -> None:
    """Shorter than leadership lasts: the same process goes on, and finds what it has missed.

    Then, like an API server that has just started, it refuses watches, since it has not read the roles yet.
    """
    away = threading.Event()
    renewals: list[Request] = []
    refused: Counter[str] = Counter()

    def rule(request: Request) -> Spoil | None:
        if away.is_set():
            if "/leases" in request.path:
                renewals.append(request)
            return Spoil()
        if renewals and request.method == "GET" and request.path in _WATCHED and refused[request.path] < 3:
            refused[request.path] += 1
            return Spoil(status=403)
        return None

    with Proxy(alone, rule) as proxy, Operator(alone, tmp_path / "1", server=proxy.url) as operator:
        operator.wait_ready().wait_leads()
        here.apply(body(kafka))
        here.wait("p", "Running")
        away.set()
        proxy.cut()
        here.kubectl("delete", "deployment", "p", "--wait=false")
        here.kubectl("scale", "vmlp/p", "--replicas=2")
        wait_for(lambda: len(renewals) >= 2, 20, "renewals that fail")
        away.clear()
        wait_for(lambda: here.condition("p")["message"] == "2 of 2 workers ready", 60, "two workers")
        wait_for(lambda: refused == dict.fromkeys(_WATCHED, 3), 60, "both watches to be refused, thrice")
        assert operator.leads
        assert operator.process.returncode is None


@pytest.mark.timeout(600)
def test_the_api_server_is_away_for_a_minute(kafka: Broker, tmp_path: Path) -> None:
    """Longer than leadership lasts: the leader ends, and the one that the kubelet then starts waits, and finds all."""
    need(kubernetes.available())
    topic(kafka)
    with Cluster(images=images()) as cluster:
        cluster.apply(crd.definition())
        grant(cluster)
        cluster.node("hollow", hollow=True, **gpus.whole(8))
        here = Pipelines(cluster, "default")
        with ExitStack() as stack:
            first = stack.enter_context(Operator(cluster, tmp_path / "1"))
            first.wait_ready().wait_leads()
            here.apply(body(kafka))
            here.wait("p", "Running")
            # Watches end with "too old": what they knew is compacted away.
            cluster.compact()
            here.kubectl("scale", "vmlp/p", "--replicas=2")

            def two_ready() -> bool:
                nonlocal first
                if first.process.returncode is not None:  # a slow machine: it took longer than leadership lasts
                    first = stack.enter_context(Operator(cluster, tmp_path / uuid4().hex, kubeconfig=first.kubeconfig))
                return here.condition("p").get("message") == "2 of 2 workers ready"

            wait_for(two_ready, 180, "two workers")
            cluster.stop_api_server()
            stopped = time.monotonic()
            assert first.wait(60) == 1
        with Operator(cluster, tmp_path / "2", kubeconfig=first.kubeconfig) as second:
            wait_for(lambda: time.monotonic() - stopped > 60, 60, "a minute", process=second.process)
            cluster.start_api_server()
            second.wait_ready().wait_leads()
            here.kubectl("delete", "deployment", "p")
            here.kubectl("scale", "vmlp/p", "--replicas=3")
            # Nodes have been silent for as long: their pods are evicted, and started anew.
            wait_for(lambda: here.condition("p").get("message") == "3 of 3 workers ready", 300, "three workers")


def test_what_an_older_crd_let_in_is_read_or_said(kafka: Broker, tmp_path: Path) -> None:
    need(kubernetes.available())
    topic(kafka)
    older: dict[str, Any] = copy.deepcopy(crd.definition())
    version = older["spec"]["versions"][0]
    # As a first version might have been: few fields, no rules, no defaults.
    free = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    version["schema"]["openAPIV3Schema"] = {"type": "object", "properties": {"spec": free, "status": free}}
    with Cluster(images=images()) as cluster:
        cluster.apply(older)
        grant(cluster)  # brings the current CRD along …
        cluster.apply(older)  # … which comes later here
        cluster.node("hollow", hollow=True, **gpus.whole(8))
        here = Pipelines(cluster, "default")
        bare = body(kafka)
        here.apply(bare)
        bad = copy.deepcopy(bare)
        bad["metadata"]["name"] = "bad"
        bad["spec"]["queue"]["kafka"]["security"] = "TELNET"
        wait_for(lambda: _applied(here, bad), 10, "the older CRD to take it")
        with Operator(cluster, tmp_path / "1") as operator:
            operator.wait_ready().wait_leads()
            here.wait("p", "Running")
            assert "spec.queue.kafka.security" in here.wait("bad", "InvalidSpec")["message"]
            cluster.apply(crd.definition())
            here.kubectl("scale", "vmlp/p", "--replicas=2")
            wait_for(lambda: here.condition("p").get("message") == "2 of 2 workers ready", 30, "two workers")


def _applied(here: Pipelines, given: dict[str, Any]) -> bool:
    try:
        here.apply(given)
    except kubernetes.KubectlError:
        return False
    return True


def test_deletion_needs_no_operator(alone: Cluster, here: Pipelines, kafka: Broker, tmp_path: Path) -> None:
    with Operator(alone, tmp_path / "1") as operator:
        operator.wait_ready().wait_leads()
        here.apply(body(kafka))
        here.wait("p", "Running")
    here.kubectl("delete", "vmlp", "p", "--timeout=10s")
    wait_for(lambda: here.all("deployment,rs,pods,pdb") == [], 30, "everything to be gone")
