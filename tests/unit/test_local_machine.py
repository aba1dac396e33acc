"""The machine as a node: slots for workers without a GPU, and who has which GPU."""

from typing import Any

import pytest

from vaultml_operator import api
from vaultml_operator.autoscaler.gpus import Pool
from vaultml_operator.local import gpus, machine
from vaultml_operator.local.documents import SLOT
from vaultml_operator.local.gpus import Device
from vaultml_operator.local.machine import Devices, Hardware

GI = 1 << 30
BOX = Hardware(cores=4, memory=10 * GI, name="box")
QUEUE = {"name": "in", "kafka": {"brokers": ["b:1"], "group": "g"}}


def spec(count: int = 0, **requests: str) -> api.Spec:
    worker = {"gpu": {"count": count}, "resources": {"requests": requests}}
    return api.Spec.model_validate({"queue": QUEUE, "worker": worker})


@pytest.mark.parametrize(
    ("requests", "expected"),
    [
        ({"cpu": "500m", "memory": "1Gi"}, 8),
        ({"cpu": "500m", "memory": "3Gi"}, 3),
        ({"cpu": "1.5"}, 2),
        ({"cpu": "64"}, 1),
        ({"memory": "100Gi"}, 1),
        ({}, 1000),
    ],
)
def test_cores_and_memory_make_slots_and_there_is_always_one(requests: dict[str, str], expected: int) -> None:
    assert machine.slots(requests, BOX) == expected


def test_pipelines_of_different_sizes_share_one_machine() -> None:
    shared = machine.share({"a": spec(cpu="1"), "b": spec(cpu="2"), "gpu": spec(1, cpu="1")}, BOX)
    assert shared.total == 4
    assert shared.taken == {"a": 1, "b": 2}
    assert machine.share({"gpu": spec(1)}, BOX).total == 0


def test_the_node_offers_slots_and_gpus_by_their_resource() -> None:
    devices = (Device("nvidia.com/gpu", "GPU-1", "NVIDIA L4"), Device("nvidia.com/gpu", "GPU-2", "NVIDIA L4"))
    node = machine.node(Hardware(4, GI, devices, name="box"), 8)
    assert node["status"]["allocatable"] == {SLOT: "8", "nvidia.com/gpu": "2"}
    assert node["metadata"]["labels"]["nvidia.com/gpu.product"] == "NVIDIA-L4"
    pool = Pool()
    pool.node_seen(node)
    assert pool.nodes["box"].offers("nvidia.com/gpu") == 2
    assert pool.nodes["box"].closed == ""


def test_no_two_workers_have_the_same_gpu() -> None:
    devices = Devices([Device("nvidia.com/gpu", f"GPU-{number}", "L4") for number in range(3)])
    first = devices.take("a", {"nvidia.com/gpu": 2})
    assert first is not None
    assert devices.take("b", {"nvidia.com/gpu": 2}) is None
    second = devices.take("b", {"nvidia.com/gpu": 1})
    assert second is not None
    assert not {*first} & {*second}
    assert devices.take("c", {"nvidia.com/gpu": 1}) is None
    devices.give_back("a")
    assert devices.take("c", {"nvidia.com/gpu": 2}) == first


def test_slots_are_given_until_none_is_left() -> None:
    devices = Devices([])
    devices.total_slots = 4
    assert devices.take("a", {SLOT: 2}) == ()
    assert devices.take("b", {SLOT: 3}) is None
    devices.resize("a", 1)
    assert devices.take("b", {SLOT: 3}) == ()


class Nvml:
    """NVIDIA's library as far as it is asked: one whole GPU, one that is partitioned."""

    class NVMLError(Exception):
        pass

    class NVMLError_NotFound(NVMLError):  # noqa: N801, N818 - its name
        pass

    @staticmethod
    def nvmlDeviceGetCount() -> int:  # noqa: N802
        return 2

    nvmlDeviceGetHandleByIndex = staticmethod(lambda index: index)  # noqa: N815
    nvmlDeviceGetMaxMigDeviceCount = staticmethod(lambda _handle: 3)  # noqa: N815

    @staticmethod
    def nvmlDeviceGetName(handle: Any) -> str:  # noqa: N802
        return {0: "NVIDIA L4", 1: "NVIDIA A100", "part": "NVIDIA A100 MIG 1g.10gb+me"}[handle]

    @staticmethod
    def nvmlDeviceGetUUID(handle: Any) -> str:  # noqa: N802
        return {0: "GPU-a", 1: "GPU-b", "part": "MIG-c"}[handle]

    @classmethod
    def nvmlDeviceGetMigMode(cls, handle: Any) -> list[int]:  # noqa: N802
        if handle == 0:
            raise cls.NVMLError("not supported")
        return [1, 1]

    @classmethod
    def nvmlDeviceGetMigDeviceHandleByIndex(cls, _handle: Any, place: int) -> str:  # noqa: N802
        if place != 1:
            raise cls.NVMLError_NotFound
        return "part"


def test_a_partitioned_gpu_is_its_instances_and_the_caller_may_hide_some() -> None:
    found = list(gpus._devices(Nvml))
    assert found == [
        (0, Device("nvidia.com/gpu", "GPU-a", "NVIDIA L4")),
        (1, Device("nvidia.com/mig-1g.10gb.me", "MIG-c", "NVIDIA A100")),
    ]
    chosen = [(text, [gpus._is_chosen(*each, text) for each in found]) for text in (None, "0", "MIG-", "", "1,GPU-a")]
    assert [kept for _, kept in chosen] == [[True, True], [True, False], [False, True], [False, False], [True, True]]
