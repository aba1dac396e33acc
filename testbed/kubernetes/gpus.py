"""How nodes with GPUs present themselves: capacity by NVIDIA's device plugin, labels by its feature discovery.

Each function returns what `Cluster.node` takes, as in `cluster.node("gpu-0", **gpus.whole(2))`. The defaults are
those of an NVIDIA L4 and, for MIG, of an H100.
"""

from typing import TypedDict

GPU = "nvidia.com/gpu"


class Gpus(TypedDict):
    """Arguments of `Cluster.node`."""

    capacity: dict[str, str]
    labels: dict[str, str]


def whole(count: int, product: str = "NVIDIA-L4", memory: int = 23034) -> Gpus:
    """Whole GPUs with `memory` MiB each."""
    return {"capacity": {GPU: str(count)}, "labels": _labels(GPU, count, product, memory)}


def mig(count: int, profile: str = "1g.10gb", product: str = "NVIDIA-H100-80GB-HBM3", memory: int = 9856) -> Gpus:
    """GPUs cut into `count` MIG devices in all, under the device plugin's `mixed` strategy.

    The device plugin names such a resource with a dot for the plus of a profile like 1g.10gb+me.
    """
    resource = f"nvidia.com/mig-{profile.replace('+', '.')}"
    labels = {"nvidia.com/mig.capable": "true", "nvidia.com/mig.strategy": "mixed", f"{GPU}.product": product}
    sliced = _labels(resource, count, f"{product}-MIG-{profile}", memory) | {f"{resource}.slices.gi": profile[0]}
    return {"capacity": {resource: str(count)}, "labels": sliced | labels}


def time_sliced(
    count: int, replicas: int, product: str = "NVIDIA-L4", memory: int = 23034, *, renamed: bool = False
) -> Gpus:
    """GPUs that `replicas` pods each share by taking turns; `renamed` offers them as nvidia.com/gpu.shared."""
    labels = _labels(GPU, count, product if renamed else f"{product}-SHARED", memory)
    labels |= {f"{GPU}.replicas": str(replicas), f"{GPU}.sharing-strategy": "time-slicing"}
    return {"capacity": {f"{GPU}.shared" if renamed else GPU: str(count * replicas)}, "labels": labels}


def _labels(resource: str, count: int, product: str, memory: int) -> dict[str, str]:
    return {
        "nvidia.com/gpu.present": "true",
        f"{resource}.count": str(count),
        f"{resource}.memory": str(memory),
        f"{resource}.product": product,
        f"{resource}.replicas": "1",
        f"{resource}.sharing-strategy": "none",
    }
