"""Measuring contenders fairly on a machine that has other work, and writing down what came out."""

import importlib.metadata
import os
import platform
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_PACKAGES = ("numpy", "onnxruntime", "opencv-python-headless", "av")
_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


@dataclass(frozen=True, slots=True)
class Contender:
    """Something to measure in the first `rounds` rounds."""

    work: Callable[[], object]
    rounds: int


def interleave(contenders: Mapping[str, Contender], clock: Callable[[], float]) -> dict[str, list[float]]:
    """Seconds by `clock` of every contender in every round.

    All take turns within a round, and every second round goes backwards, so that a neighbour's load or the clock speed
    of a minute meets all of them. One run of each before does not count.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for contender in contenders.values():
        contender.work()
    for number in range(max(contender.rounds for contender in contenders.values())):
        for name, contender in list(contenders.items())[:: -1 if number % 2 else 1]:
            if number < contender.rounds:
                start = clock()
                contender.work()
                seconds[name].append(clock() - start)
    return seconds


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Median of the ratios of the rounds that both took part in."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=False))


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Render a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def machine() -> str:
    """Describe the processor, the cores that may be used, and the versions of what is measured."""
    info = Path("/proc/cpuinfo")
    fields = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line) if info.exists() else {}
    about = {key.strip(): value.strip() for key, value in fields.items()}
    flags = [flag for flag in _FLAGS if flag in about.get("flags", "").split()]
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES)
    return (
        f"{about.get('model name', platform.processor() or 'unknown processor')} ({', '.join(flags) or 'no AVX2'}), "
        f"{len(os.sched_getaffinity(0))} cores; Python {platform.python_version()}, {versions}"
    )
