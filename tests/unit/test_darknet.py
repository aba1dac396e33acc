import struct
from pathlib import Path

import numpy as np
import pytest

from tests.networks import CFG, tiny_weights
from vaultml_worker import darknet
from vaultml_worker.records import InvalidInput


@pytest.fixture
def cfg(tmp_path: Path) -> Path:
    path = tmp_path / "small.cfg"
    path.write_text(CFG)
    return path


def test_shapes_and_table(cfg: Path) -> None:
    network = darknet.read_cfg(cfg)
    assert (network.width, network.height, network.classes) == (32, 32, 3)
    assert [layer.outputs for layer in network.layers][:4] == [(8, 32, 32), (8, 16, 16), (16, 8, 8), (8, 8, 8)]
    table = darknet.layer_table(network)
    assert table.startswith(
        "layer     filters    size              input                output\n    0 conv      8  3 x 3 / 1 "
    )
    assert table.count("\n") == len(network.layers) + 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("[net]", "[nett]"), "begins with the section"),
        (("channels=3", "channels=1"), "channels=3"),
        (("width=32", "width=wide"), "width=wide is not a number"),
        (("[maxpool]", "[lstm]"), r"\[lstm\] is not a layer of YOLOv3"),
        (("filters=24", "filters=25"), "need 24"),
        (("activation=leaky", "activation=mish"), "mish"),
        (("from=-3", "from=-40"), "no layer -40"),
        (("mask = 0,1,2", "mask = 7,8,9"), "mask must name"),
        (("size=3", "size 3"), "neither"),
        (("stride=2\n", "stride=0\n"), "whole number from 1"),
    ],
)
def test_a_wrong_cfg_is_named(cfg: Path, change: tuple[str, str], says: str) -> None:
    text = cfg.read_text()
    assert change[0] in text
    cfg.write_text(text.replace(*change))
    with pytest.raises(InvalidInput, match=says):
        darknet.read_cfg(cfg)


def test_weights_are_read_in_darknets_order_and_folded(cfg: Path, tmp_path: Path) -> None:
    network = darknet.read_cfg(cfg)
    path = tmp_path / "small.weights"
    values = tiny_weights(network, path, seed=1)
    convolutions, digest = darknet.read_weights(network, path)
    assert len(digest) == 64
    first = network.layers[0]
    assert isinstance(first, darknet.Convolutional)
    n = first.filters
    bias, scale, mean, variance = (values[i * n : (i + 1) * n] for i in range(4))
    kernel = values[4 * n : first.weights].reshape(n, 3, 3, 3)
    factor = scale / (np.sqrt(variance) + 1e-6)
    np.testing.assert_allclose(convolutions[0].kernel, kernel * factor[:, None, None, None], rtol=1e-5)
    np.testing.assert_allclose(convolutions[0].bias, bias - mean * factor, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("version", "size"), [((0, 2, 0), 8), ((0, 1, 0), 4), ((1, 0, 0), 8)])
def test_the_header_has_two_sizes(cfg: Path, tmp_path: Path, version: tuple[int, int, int], size: int) -> None:
    network = darknet.read_cfg(cfg)
    path = tmp_path / "small.weights"
    values = tiny_weights(network, path, seed=1)
    path.write_bytes(struct.pack("<iii", *version) + bytes(size) + values.tobytes())
    convolutions, _ = darknet.read_weights(network, path)
    assert np.isfinite(convolutions[-1].bias).all()


@pytest.mark.parametrize("change", [-4, 4, -1000])
def test_weights_of_another_network_are_refused_with_both_sizes(cfg: Path, tmp_path: Path, change: int) -> None:
    network = darknet.read_cfg(cfg)
    path = tmp_path / "small.weights"
    tiny_weights(network, path, seed=1)
    body = path.read_bytes()
    path.write_bytes(body[:change] if change < 0 else body + bytes(change))
    with pytest.raises(InvalidInput) as caught:
        darknet.read_weights(network, path)
    assert f"{len(body):,}" in str(caught.value)
    assert f"{len(body) + change:,}" in str(caught.value)
