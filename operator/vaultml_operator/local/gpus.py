"""The GPUs of this machine, as NVIDIA's management library names them."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

GPU = "nvidia.com/gpu"
_MIG = "nvidia.com/mig-"


@dataclass(frozen=True, slots=True)
class Device:
    """What one worker can have to itself: a GPU, or an instance of a partitioned one; `uuid` is CUDA's name for it."""

    resource: str
    uuid: str
    product: str


def find(visible: str | None = None) -> tuple[tuple[Device, ...], str]:
    """The devices, and why there are none, if so.

    `visible`: as in CUDA_VISIBLE_DEVICES, indices or beginnings of UUIDs; None: this process's own.
    """
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return (), f"no NVIDIA driver answers ({error})"
    try:
        found = list(_devices(pynvml))
    except pynvml.NVMLError as error:
        return (), f"the NVIDIA driver does not tell of its GPUs ({error})"
    finally:
        pynvml.nvmlShutdown()
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES") if visible is None else visible
    devices = tuple(device for index, device in found if _is_chosen(index, device, chosen))
    return devices, "" if devices else f"none of {len(found)} GPUs is visible (CUDA_VISIBLE_DEVICES={chosen})"


def _devices(nvml: Any) -> Iterator[tuple[int, Device]]:
    for index in range(nvml.nvmlDeviceGetCount()):
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        product = str(nvml.nvmlDeviceGetName(handle))
        if not _is_partitioned(nvml, handle):
            yield index, Device(GPU, str(nvml.nvmlDeviceGetUUID(handle)), product)
            continue
        for place in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
            try:
                part = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, place)
            except nvml.NVMLError_NotFound:
                continue
            profile = str(nvml.nvmlDeviceGetName(part)).rpartition("MIG ")[2]
            yield index, Device(f"{_MIG}{profile.replace('+', '.')}", str(nvml.nvmlDeviceGetUUID(part)), product)


def _is_partitioned(nvml: Any, handle: Any) -> bool:
    try:
        return bool(nvml.nvmlDeviceGetMigMode(handle)[0])
    except nvml.NVMLError:
        return False  # a GPU that can't be


def _is_chosen(index: int, device: Device, chosen: str | None) -> bool:
    if chosen is None:
        return True
    return any(each == str(index) or (each and device.uuid.startswith(each)) for each in chosen.split(","))
