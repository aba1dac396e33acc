"""A burst from zero with everything real: Kafka, GPUs as the scheduler counts them, and the worker itself."""

from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest

from testbed.kafka import Broker
from testbed.kubernetes import Cluster, gpus
from testbed.operator import Operator, Pipelines
from testbed.process import wait_for
from tests.real.operators.lagging import scaling, workers
from tests.real.scene import ACCOUNT, Scene, keys_of

RECORDINGS = 300
GPUS = 4
_TIMEOUT_S = 240


@pytest.fixture
def node(crds: Cluster) -> Iterator[str]:
    """A node that really runs its pods, with four GPUs."""
    made = crds.node("burst", **gpus.whole(GPUS), taints=[{"key": "burst", "effect": "NoSchedule"}])
    yield made.name
    made.remove()


@pytest.mark.timeout(400)
def test_three_hundred_recordings_from_zero_and_back(
    kafka: Broker, operator: Operator, pipelines: Pipelines, stage: Callable[..., Scene], node: str
) -> None:
    scene = stage(partitions=GPUS)
    scene.create(scene.queue, scene.target, scene.dead)
    pipelines.secret("vault-credentials", accessKey=ACCOUNT.access_key, secretKey=ACCOUNT.secret_key)
    pipelines.apply(
        {
            "apiVersion": "ml.kerberos.io/v1alpha1",
            "kind": "VaultMLPipeline",
            "metadata": {"name": "p"},
            "spec": {
                "queue": {
                    "name": scene.queue.name,
                    "target": scene.target.name,
                    "kafka": {"brokers": [kafka.plaintext], "group": scene.group},
                },
                "vault": {"apiUrl": scene.vault.url, "credentialsSecretRef": {"name": "vault-credentials"}},
                "detection": {"numberOfPredictions": 1},
                "autoscaling": {"minReplicas": 0, "drainSeconds": 60, "pollingSeconds": 2, "cooldownSeconds": 5},
                "worker": {
                    "engine": "onnxruntime",
                    "nodeSelector": {"kubernetes.io/hostname": node},
                    "tolerations": [{"key": "burst", "operator": "Exists"}],
                    "terminationGracePeriodSeconds": 60,
                },
            },
        }
    )
    pipelines.wait("p", "ScaledToZero", timeout=60)
    numbers = [0]

    def seen() -> None:
        number = workers(pipelines)
        if number != numbers[-1]:
            numbers.append(number)

    events = scene.events(RECORDINGS)
    scene.send(*events)

    def answered() -> bool:
        seen()
        return sum(scene.committed().values()) == RECORDINGS

    wait_for(answered, _TIMEOUT_S, "all recordings to be done")

    def asleep() -> bool:
        seen()
        return numbers[-1] == 0 and pipelines.all("pods") == []

    wait_for(asleep, 120, "no worker to be left")
    # Straight to what the GPUs allow, and down again: one change of direction.
    assert numbers[:2] == [0, GPUS]
    assert sum(before > after for before, after in pairwise(numbers)) == len(numbers) - 2
    # Exactly one result each: nobody was stopped in the middle of a recording.
    keys = scene.target.keys()
    assert len(keys) == RECORDINGS
    assert set(keys) == keys_of(events)
    assert scene.letters() == []
    said = scaling(pipelines)
    assert (said["lag"], said["desiredReplicas"], said["processed"]) == (0, 0, RECORDINGS)
