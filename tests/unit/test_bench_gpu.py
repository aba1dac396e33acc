"""What is made of the measurements on a GPU."""

import pytest

from benchmarks.gpu import REFERENCES, hidden, reference
from vaultml_worker.engines.bench import Measured


@pytest.mark.parametrize(
    ("gpu", "known"),
    [
        ("Tesla T4", "T4"),
        ("NVIDIA A10", "A10"),
        ("NVIDIA A10G", None),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA A100 80GB PCIe", "A100"),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("NVIDIA H100 80GB HBM3", "H100 80GB HBM3"),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA H200", "H200(?! NVL)"),
        ("NVIDIA H200 NVL", None),
        ("Stand-in GPU", None),
    ],
)
def test_a_gpu_is_known_by_its_name(gpu: str, known: str | None) -> None:
    assert reference(gpu) == (known and REFERENCES[known])


@pytest.mark.parametrize(
    ("latency", "throughput", "part"),
    [(0.012, 1000, 1.0), (0.012, 8 / 0.012, 0.0), (0.012, 8 / 0.010, 0.5), (0.012, 500, 0.0), (0.008, 1000, 1.0)],
)
def test_what_is_hidden_is_what_following_batches_save(latency: float, throughput: float, part: float) -> None:
    """8 frames in 8 ms of computation: everything of the copies is hidden when a batch comes each 8 ms."""
    assert hidden(Measured(8, latency, throughput, 1000)) == pytest.approx(part)
