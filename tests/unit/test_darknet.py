import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.networks import CFG, YOLOV4, YOLOV4_TINY, YOLOV7_TINY, described, tiny_weights
from vaultml_worker import darknet
from vaultml_worker.records import InvalidInput

TRIALS = Path(__file__).parents[1] / "data/model-trials"


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
        (("channels=3", "channels=4"), "not width=32, height=32, channels=4"),
        (("width=32", "width=wide"), "width=wide is not a number"),
        (("[maxpool]", "[lstm]"), r"layer 1 \[lstm\], line 17: is not one of the layers"),
        (("filters=24", "filters=25"), "need 24"),
        (("activation=leaky", "activation=gelu"), r"layer 0 \[convolutional\], line 15: activation=gelu is not one"),
        (("activation=leaky", "activation=leaky # slope"), "a comment needs a line of its own"),
        (("[maxpool]", "[maxpool"), r"line 17: '\[maxpool' is not \[section\]"),
        (("[net]", "batch=1\n[net]"), "line 2 comes before the section"),
        (("from=-3", "from=-3,-4"), r"layer 5 \[shortcut\], line \d+: from must name one layer"),
        (("filters=24", "Filters=24"), "Darknet ignores Filters, its keys have small letters: filters"),
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


@pytest.mark.parametrize(
    ("key", "layer"),
    [
        ("dilation=2", "conv 8 3 1 leaky"),
        ("antialiasing=1", "conv 8 3 1 leaky"),
        ("share_index=0", "conv 8 3 1 leaky"),
        ("dontload=1", "conv 8 3 1 leaky"),
        ("maxpool_depth=1", "max 2 2"),
        ("weights_type=per_feature", "short -1"),
        ("alpha=0.5", "short -1"),
        ("scale=2", "up"),
        ("rescore=1", "route -1"),
        ("scale_x_y_z=2", "yolo 0,1,2"),
    ],
)
def test_a_key_that_may_change_the_network_is_refused_by_name(tmp_path: Path, key: str, layer: str) -> None:
    kind = layer.split()[0]
    layers = ["conv 8 3 2 leaky", "max 2 2", "short -1", "route -1", "up", "conv 24 1 1 linear", "yolo 0,1,2"]
    number = next(index for index, each in enumerate(layers) if each.split()[0] == kind)
    path = tmp_path / "some.cfg"
    path.write_text(described(*layers))
    darknet.read_cfg(path)
    layers[number] += f" {key}"
    path.write_text(described(*layers))
    line = path.read_text().splitlines().index(key) + 1
    with pytest.raises(InvalidInput, match=rf"some.cfg: layer {number} \[\w+\], line {line}: .*{key.split('=')[0]}"):
        darknet.read_cfg(path)


def test_a_key_that_leaves_the_network_as_it_is_may_stay(tmp_path: Path) -> None:
    path = tmp_path / "some.cfg"
    path.write_text(described("conv 8 3 2 leaky dilation=1 antialiasing=0", "conv 24 1 1 linear", "yolo 0,1,2"))
    with_keys = darknet.read_cfg(path)
    path.write_text(described("conv 8 3 2 leaky", "conv 24 1 1 linear", "yolo 0,1,2"))
    assert darknet.read_cfg(path) == with_keys


def read(path: Path, body: bytes) -> darknet.Network:
    path.write_bytes(body)
    return darknet.read_cfg(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("\n", "\r\n").encode(),
        lambda text: text.replace("\n", "\r").encode(),
        lambda text: b"\xef\xbb\xbf" + text.encode(),
        lambda text: text.encode("utf-16"),
        lambda text: text.encode() + b"\r\n\x1a",
        lambda text: text.encode() + b"\x1a\n",
        lambda text: b"# gr\xf6\xdfe \x81\x8f\n;\xff\x1a\n" + text.encode(),
        lambda text: "# größe 大\n".encode() + text.encode(),
        lambda text: text.replace("filters=24", "filters = 24 ; (3 + 5) * 3").encode(),
        lambda text: text.replace("filters=24", "filters=24// (3 + 5) * 3").encode(),
        lambda text: text.replace("[yolo]", "[yolo] # head").encode(),
        lambda text: text.replace("[net]", " [ net ] ; first").encode(),
        lambda text: text.replace("60,50", "60,50,  # the last").encode(),
        lambda text: text.replace("filters=24", "filters=24\nfilters=3").encode(),
        lambda text: text.replace("size=1\n", "size=1\nPadding=1\n").encode(),
    ],
)
def test_a_cfg_as_an_editor_leaves_it_is_the_same_network(cfg: Path, change: Callable[[str], bytes]) -> None:
    text = cfg.read_text()
    honest = darknet.read_cfg(cfg)
    changed = change(text)
    assert changed != text.encode()
    assert read(cfg, changed) == honest


@pytest.mark.parametrize(
    "name", ["20-comment", "20-section-comment", "32-bom", "32-ctrl-z", "32-latin1", "19-stride_x", "33-grey"]
)
def test_trials_are_the_good_network(name: str) -> None:
    good, trial = (darknet.read_cfg(TRIALS / f"{each}.cfg") for each in ("good", name))
    assert [layer.outputs for layer in trial.layers] == [layer.outputs for layer in good.layers]
    assert trial.channels == (1 if name == "33-grey" else 3)


def test_trials_with_keys_of_later_networks() -> None:
    route = darknet.read_cfg(TRIALS / "19-groups.cfg").layers[2]
    assert isinstance(route, darknet.Route)
    assert (route.groups, route.group, route.outputs) == (2, 1, (4, 16, 16))
    assert [head.scale_xy for head in darknet.read_cfg(TRIALS / "19-scale_x_y.cfg").heads] == [2.0]


def test_keys_that_darknet_ignores_are_told(cfg: Path) -> None:
    cfg.write_text(cfg.read_text().replace("size=1\n", "size=1\nPad=1\n", 1).replace("[net]", "[net]\nHue=.1"))
    assert darknet.read_cfg(cfg).ignored == ("line 34: Darknet ignores Pad, its keys have small letters: pad",)


@pytest.mark.parametrize("text", [YOLOV4, YOLOV4_TINY, YOLOV7_TINY])
def test_later_networks_are_read(tmp_path: Path, text: str) -> None:
    (tmp_path / "later.cfg").write_text(text)
    network = darknet.read_cfg(tmp_path / "later.cfg")
    assert len(network.heads) == 2
    assert network.ignored == ()
    assert darknet.layer_table(network).count("\n") == len(network.layers) + 1


def test_a_part_of_a_route_must_exist(tmp_path: Path) -> None:
    path = tmp_path / "some.cfg"
    for keys, says in [
        ("groups=2 group_id=2", "group_id=2 must be less than groups=2"),
        ("groups=3", "must divide"),
        ("groups=0", "whole number from 1"),
        ("group_id=-1", "whole number from 0"),
    ]:
        path.write_text(described("conv 8 3 2 leaky", f"route -1 {keys}", "conv 24 1 1 linear", "yolo 0,1,2"))
        with pytest.raises(InvalidInput, match=says):
            darknet.read_cfg(path)


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
