"""A worker whose user lacks rights, and one that logs in with tokens of an OpenID Connect provider."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from testbed import oidc
from testbed.kafka import OAuthBroker, StrictBroker, available
from testbed.process import wait_for
from tests.parts import need
from tests.real.scene import WAIT_S, Scene, keys_of
from tests.real.test_doctor import doctor, wrong
from vaultml_worker.dev.vault import VaultServer

Stage = Callable[..., Scene]


@pytest.fixture(scope="module")
def strict() -> Iterator[StrictBroker]:
    need(available())
    with StrictBroker() as broker:
        yield broker


@pytest.fixture
def limited(strict: StrictBroker, clips: list[bytes], tmp_path: Path) -> Iterator[Scene]:
    """A queue, target and group on which the user has no rights yet."""
    with ExitStack() as stack:
        scene = Scene(strict, tmp_path, clips, stack, 1)
        scene.create(scene.queue, scene.target, scene.dead)
        yield scene


def allow(broker: StrictBroker, scene: Scene, but: str = "") -> None:
    """Grant all that a worker needs, except the one right."""
    rights = {
        "queue": ("topic", scene.queue.name, "read"),
        "target": ("topic", scene.target.name, "write"),
        "dead": ("topic", scene.dead.name, "write"),
        "group": ("group", scene.group, "read"),
    }
    for name, right in rights.items():
        if name != but:
            broker.allow(*right)


@pytest.mark.parametrize(
    ("missing", "says", "part"),
    [
        ("group", "the user lacks the right Read on the group: grant Read on KAFKA_GROUP", "group"),
        ("queue", "the user lacks a right on the topic: grant Read and Describe on QUEUE_NAME", "queue"),
        ("target", "the user lacks a right on the topic: grant Read and Describe on QUEUE_NAME", "results"),
    ],
)
def test_a_missing_right_is_named_and_work_begins_once_it_is_granted(
    strict: StrictBroker, limited: Scene, missing: str, says: str, part: str
) -> None:
    sent = limited.events(8)
    limited.send(*sent)
    allow(strict, limited, but=missing)
    assert part in wrong(doctor(limited.environment())[1])
    worker = limited.worker()
    worker.wait_log(says)
    assert not worker.ready()
    allow(strict, limited)
    limited.await_results(keys_of(sent))
    limited.await_committed()
    assert worker.terminate() == 0
    assert limited.letters() == []
    assert "Traceback" not in worker.log_text()


def test_a_user_that_may_write_nowhere_is_told_and_begins_once_it_may(clips: list[bytes], tmp_path: Path) -> None:
    """Without a right to write anywhere the idempotent producer fails for good: it is replaced in place."""
    need(available())
    with ExitStack() as stack:
        strict = stack.enter_context(StrictBroker())  # one where this user has no rights from other tests
        scene = Scene(strict, tmp_path, clips, stack, 1)
        scene.create(scene.queue, scene.target, scene.dead)
        sent = scene.events(8)
        scene.send(*sent)
        strict.allow("topic", scene.queue.name, "read")
        strict.allow("group", scene.group, "read")
        strict.allow("topic", scene.target.name, "describe")
        worker = scene.worker()
        worker.wait_log("grant Write on QUEUE_TARGET (before Kafka 2.8 also IdempotentWrite")
        # Replaced in vain: whoever looks after the process is told.
        wait_for(lambda: worker.get("/healthz")[0] == 503, WAIT_S, "health to fail", process=worker.process)
        assert sum(scene.committed().values()) == 0
        allow(strict, scene)
        scene.await_results(keys_of(sent))
        scene.await_committed()
        assert worker.get("/healthz")[0] == 200
        assert worker.terminate() == 0
        assert scene.letters() == []
        assert "Traceback" not in worker.log_text()


def test_a_right_that_is_taken_away_in_mid_flow_loses_nothing(strict: StrictBroker, limited: Scene) -> None:
    allow(strict, limited)
    first, second = limited.events(4), limited.events(6)
    limited.send(*first)
    worker = limited.worker().wait_ready()
    limited.await_results(keys_of(first))
    limited.await_committed()
    strict.revoke("topic", limited.target.name, "write")
    limited.send(*second)
    worker.wait_log("grant Read and Describe on QUEUE_NAME, and Write")
    assert sum(limited.committed().values()) == len(first)
    strict.allow("topic", limited.target.name, "write")
    limited.await_results(keys_of(second))
    limited.await_committed()
    assert worker.terminate() == 0
    assert limited.letters() == []


@pytest.fixture(scope="module")
def tokens() -> Iterator[tuple[OAuthBroker, str]]:
    """A broker that takes tokens, and the endpoint that gives them."""
    need(available())
    provider = VaultServer(oidc.provider())
    with OAuthBroker(f"{provider.url}/jwks") as broker:
        yield broker, f"{provider.url}/token"
    provider.close()


def test_a_worker_logs_in_with_tokens(tokens: tuple[OAuthBroker, str], clips: list[bytes], tmp_path: Path) -> None:
    broker, endpoint = tokens
    oauth = {
        "KAFKA_MECHANISM": "OAUTHBEARER",
        "KAFKA_USERNAME": "",
        "KAFKA_PASSWORD": "",
        "KAFKA_OAUTH_TOKEN_URL": endpoint,
        "KAFKA_OAUTH_CLIENT_ID": oidc.CLIENT_ID,
        "KAFKA_OAUTH_CLIENT_SECRET": oidc.CLIENT_SECRET,
    }
    with ExitStack() as stack:
        scene = Scene(broker, tmp_path, clips, stack, 1)
        scene.create(scene.queue, scene.target, scene.dead)
        sent = scene.events(3)
        scene.send(*sent)
        wrong_secret = scene.worker(**oauth | {"KAFKA_OAUTH_CLIENT_SECRET": "wr0ng!@#"})
        wrong_secret.wait_log("authentication failed: check")
        assert "KAFKA_OAUTH_" in wrong_secret.log_text()
        assert wrong_secret.terminate() == 0
        assert wrong(doctor(scene.environment(**oauth | {"KAFKA_OAUTH_CLIENT_SECRET": "wr0ng!@#"}))[1]) == ["broker"]
        assert doctor(scene.environment(**oauth))[0] == 0
        worker = scene.worker(**oauth)
        scene.await_results(keys_of(sent))
        scene.await_committed()
        assert worker.terminate() == 0
        for one in (worker, wrong_secret):
            assert oidc.CLIENT_SECRET not in one.log_text()
            assert "wr0ng" not in one.log_text()


def test_the_operators_check_logs_in_with_tokens(tokens: tuple[OAuthBroker, str]) -> None:
    from vaultml_common.kafka import Login, OAuth
    from vaultml_operator.probes import Connection
    from vaultml_operator.probes.kafka import check

    broker, endpoint = tokens
    broker.create_topic("seen-with-a-token")

    def ask(secret: str) -> str:
        login = Login("OAUTHBEARER", oauth=OAuth(endpoint, oidc.CLIENT_ID, secret))
        return check(Connection((broker.sasl_plaintext,), "SASL_PLAINTEXT", login), ["seen-with-a-token"]).reason

    wait_for(lambda: ask(oidc.CLIENT_SECRET) == "Reachable", WAIT_S, "a login with a token")
    assert ask("wr0ng") == "AuthenticationFailed"
