"""The graph against an independent implementation: OpenCV's Darknet importer and decoder."""

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest

from tests.networks import CFG, MIXED, YOLOV4, YOLOV4_TINY, YOLOV7_TINY, described, tiny_weights
from vaultml_common.machine import cpus
from vaultml_worker import darknet, engines, model, onnx_graph
from vaultml_worker.engines.onnx import OnnxEngine
from vaultml_worker.records import InvalidInput, Model

NAMES = "one\ntwo\nthree\n"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("network")
    cfg, weights = folder / "small.cfg", folder / "small.weights"
    cfg.write_text(CFG)
    tiny_weights(darknet.read_cfg(cfg), weights, seed=7)
    (folder / "small.names").write_text(NAMES)
    return cfg, weights


@pytest.fixture(scope="module")
def loaded(files: tuple[Path, Path]) -> Model:
    return model.load(files[0])


def pixels(count: int = 3, size: int = 32) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 255, (count, size, size, 3), dtype=np.uint8)


def reference(files: tuple[Path, Path], picture: np.ndarray) -> list[tuple[float, int, list[float]]]:
    """Score, class and x1, y1, x2, y2 of every box and class, best first, by OpenCV, which gives those above 0.2."""
    net = cv2.dnn.readNetFromDarknet(str(files[0]), str(files[1]))
    net.setInput(cv2.dnn.blobFromImage(picture.astype(np.float32), 1 / 255))
    size = len(picture)
    found = []
    for head in net.forward(net.getUnconnectedOutLayersNames()):
        for x, y, w, h, _, *scores in head * np.float32(1):
            box = [float(edge) * size for edge in (x - w / 2, y - h / 2, x + w / 2, y + h / 2)]
            found += [(float(score), number, box) for number, score in enumerate(scores) if score > 0]
    return sorted(found, key=lambda item: -item[0])


@pytest.mark.parametrize(
    ("cfg", "size"),
    [(CFG, 32), (YOLOV4, 64), (YOLOV4_TINY, 64), (YOLOV7_TINY, 64), (MIXED, 64)],
    ids=["yolov3", "yolov4", "yolov4-tiny", "yolov7-tiny", "mixed"],
)
def test_boxes_and_scores_are_opencvs(cfg: str, size: int, tmp_path: Path) -> None:
    files = tmp_path / "small.cfg", tmp_path / "small.weights"
    files[0].write_text(cfg)
    (tmp_path / "small.names").write_text(NAMES)
    tiny_weights(darknet.read_cfg(files[0]), files[1], seed=7)
    frames = pixels(size=size)
    for frame, found in zip(frames, OnnxEngine(model.load(files[0]), threads=1).detect(frames), strict=True):
        theirs = reference(files, frame)[:900]
        assert len(theirs) > 30
        assert theirs[0][0] - theirs[-1][0] > 0.1
        np.testing.assert_allclose(found.scores[: len(theirs)], [score for score, _, _ in theirs], atol=1e-4)
        mine = np.column_stack([found.boxes, found.classes * 1000])
        for score, number, box in theirs[:200]:
            near = np.abs(found.scores - score) < 1e-4
            assert np.abs(mine[near] - [*box, number * 1000]).max(axis=1).min() < 0.05


def values(cfg: str, folder: Path, kind: str, frames: np.ndarray) -> np.ndarray:
    """Outputs of the graph's first node of a kind, with random weights."""
    (folder / "small.cfg").write_text(cfg)
    network = darknet.read_cfg(folder / "small.cfg")
    tiny_weights(network, folder / "small.weights", seed=3)
    convolutions, _ = darknet.read_weights(network, folder / "small.weights")
    proto = onnx.load_model_from_string(onnx_graph.build(network, convolutions, NAMES.split()))
    name = next(node.output[0] for node in proto.graph.node if node.op_type == kind)
    proto.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run([name], {"frames": frames})[0])


ONE_HEAD = ("conv 8 3 2 leaky", "conv 24 1 1 linear", "yolo 0,1,2")


def test_strides_that_differ_leave_out_rows_or_columns(tmp_path: Path) -> None:
    frames = pixels(size=64)
    each = values(described("conv 8 3 1 leaky stride_x=1", *ONE_HEAD[1:]), tmp_path, "Conv", frames)
    for keys, kept in [("stride_x=2", each[..., ::2]), ("stride_y=2", each[..., ::2, :])]:
        cfg = described(f"conv 8 3 1 leaky {keys}", *ONE_HEAD[1:])
        np.testing.assert_allclose(values(cfg, tmp_path, "Conv", frames), kept, atol=1e-5)
    both = values(described("conv 8 3 7 leaky stride_x=2 stride_y=2", *ONE_HEAD[1:]), tmp_path, "Conv", frames)
    np.testing.assert_allclose(both, each[..., ::2, ::2], atol=1e-5)


def test_a_part_of_several_layers_is_a_part_of_each(tmp_path: Path) -> None:
    before, route = ("conv 8 3 2 leaky", "conv 16 1 1 leaky"), "route -1,0"
    whole = values(described(*before, route, *ONE_HEAD[1:]), tmp_path, "Concat", pixels(size=64))
    parts = values(
        described(*before, f"{route} groups=4 group_id=3", *ONE_HEAD[1:]), tmp_path, "Concat", pixels(size=64)
    )
    np.testing.assert_array_equal(parts, np.concatenate([whole[:, 12:16], whole[:, 22:24]], axis=1))
    table = darknet.layer_table(darknet.read_cfg(tmp_path / "small.cfg"))
    assert table.splitlines()[3] == "    2 route  1 0  3/4"


def test_a_grey_network_sees_the_luma(tmp_path: Path) -> None:
    """The same network for RGB, whose first kernels are the grey ones weighted by luma, says the same."""
    cfg = described(*ONE_HEAD).replace("channels=3", "channels=1")
    (tmp_path / "grey.cfg").write_text(cfg)
    grey = darknet.read_cfg(tmp_path / "grey.cfg")
    tiny_weights(grey, tmp_path / "grey.weights", seed=3)
    first, last = darknet.read_weights(grey, tmp_path / "grey.weights")[0]
    (tmp_path / "rgb.cfg").write_text(described(*ONE_HEAD))
    kernel = np.concatenate([first.kernel * part for part in (0.299, 0.587, 0.114)], axis=1).astype(np.float32)
    rgb = onnx_graph.build(
        darknet.read_cfg(tmp_path / "rgb.cfg"), [darknet.Convolution(kernel, first.bias), last], NAMES.split()
    )
    (tmp_path / "grey.names").write_text(NAMES)
    one = model.load(tmp_path / "grey.cfg")
    other = Model("rgb", "", rgb, 64, 64, one.labels)
    ours, theirs = (OnnxEngine(each).detect(pixels(1, 64))[0] for each in (one, other))
    np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-4)


def test_scores_come_sorted_and_batches_do_not_mix(loaded: Model) -> None:
    frames = pixels(5)
    engine = engines.create("auto", loaded)
    engine.warm_up()
    together = engine.detect(frames)
    for frame, found in zip(frames, together, strict=True):
        alone = engine.detect(frame[None])[0]
        np.testing.assert_allclose(found.scores, alone.scores, atol=1e-5)
        np.testing.assert_allclose(found.boxes[:50], alone.boxes[:50], atol=1e-2)
        assert (np.diff(found.scores) <= 0).all()
    assert engine.detect(frames[:0]) == []
    engine.close()


def test_half_precision_gives_nearly_the_same(files: tuple[Path, Path], loaded: Model) -> None:
    half = model.load(*files, precision="fp16")
    assert len(half.onnx) < len(loaded.onnx)
    types = {item.data_type for item in onnx.load_model_from_string(half.onnx).graph.initializer}
    assert onnx.TensorProto.FLOAT16 in types
    one, other = OnnxEngine(loaded).detect(pixels(1))[0], OnnxEngine(half).detect(pixels(1))[0]
    np.testing.assert_allclose(one.scores[:20], other.scores[:20], atol=0.01)


def test_the_graph_is_valid_and_carries_its_labels(loaded: Model) -> None:
    proto = onnx.load_model_from_string(loaded.onnx)
    onnx.checker.check_model(proto, full_check=True)
    assert [item.name for item in proto.graph.output] == ["boxes", "scores", "classes"]
    assert loaded.labels == ("one", "two", "three")


def test_an_exported_model_is_a_model(loaded: Model, tmp_path: Path) -> None:
    path = tmp_path / "exported.onnx"
    path.write_bytes(loaded.onnx)
    again = model.load(path)
    assert (again.labels, again.width, again.height, again.name) == (loaded.labels, 32, 32, "exported")
    assert len(OnnxEngine(again).detect(pixels(1))) == 1


def test_a_cpu_limit_is_honoured(tmp_path: Path) -> None:
    everything = cpus(tmp_path)
    (tmp_path / "cpu.max").write_text("100000 100000\n")
    assert cpus(tmp_path) == 1
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert cpus(tmp_path) == everything
    (tmp_path / "cpu.max").unlink()
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("50000\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert cpus(tmp_path) == 1
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    assert cpus(tmp_path) == everything


def test_nothing_is_reported_to_anyone(tmp_path: Path) -> None:
    """onnxruntime's telemetry leaves a folder in the cache where it is on."""
    code = "import vaultml_worker.engines, onnxruntime"
    home = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], env=home, check=True, timeout=60)
    assert list(tmp_path.iterdir()) == []


def test_a_broken_graph_is_refused_in_one_line(loaded: Model) -> None:
    broken = Model("broken", loaded.sha256, loaded.onnx[: len(loaded.onnx) // 2], 32, 32, loaded.labels)
    with pytest.raises(InvalidInput, match="broken: onnxruntime can't load it"):
        OnnxEngine(broken)
