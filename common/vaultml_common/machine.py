"""This machine as a container may use it: CPUs, memory, and the folder for what is fetched or built once."""

import os
import re
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")


def cache_folder() -> Path:
    """Return where fetched and built things live: $VAULTML_CACHE, else the user's cache folder."""
    if given := os.environ.get("VAULTML_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vaultml"


def cpus(cgroup: Path = _CGROUP) -> int:
    """Return the number of CPUs this process may use: its affinity, bounded by the limit of cgroup v2, then v1."""
    allowed = len(os.sched_getaffinity(0))
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota, period = (
                (cgroup / "cpu" / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period")
            )
        except OSError:
            return allowed
    if not quota.isdecimal() or not period.isdecimal() or int(period) == 0:
        return allowed  # "max", or -1 in v1: no limit
    return max(1, min(allowed, -(-int(quota) // int(period))))


def free_memory(cgroup: Path = _CGROUP) -> int:
    """Return the memory in bytes that this process may still take: what is available, bounded by the container's."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB", _MEMINFO.read_text(), re.MULTILINE)
    free = int(found[1]) * 1024 if found is not None else 0
    try:
        limit, used = (int((cgroup / f"memory.{name}").read_text()) for name in ("max", "current"))
    except (OSError, ValueError):
        return free  # no limit
    return max(0, min(free, limit - used))
