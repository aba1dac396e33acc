from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, external_data_helper, helper, numpy_helper

from tests.networks import described, tiny_weights
from vaultml_worker import darknet, model, onnx_file
from vaultml_worker.engines.onnx import OnnxEngine
from vaultml_worker.records import InvalidInput

TRIALS = Path(__file__).parents[1] / "data/model-trials"


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """An ONNX of ours with three classes."""
    cfg, weights = tmp_path / "small.cfg", tmp_path / "small.weights"
    cfg.write_text(described("conv 8 3 2 leaky", "conv 24 1 1 linear", "yolo 0,1,2"))
    tiny_weights(darknet.read_cfg(cfg), weights, seed=1)
    (tmp_path / "small.names").write_text("a\nb\nc\n")
    path = tmp_path / "exported.onnx"
    path.write_bytes(model.load(cfg).onnx)
    return path


def with_external_data(exported: Path, names: Sequence[str]) -> Path:
    """The same model with its large tensors in files of these names, in turn."""
    proto = onnx.load_model(exported)
    for number, tensor in enumerate(tensor for tensor in proto.graph.initializer if len(tensor.raw_data) > 64):
        external_data_helper.set_external_data(tensor, names[number % len(names)])
    path = exported.with_name("external.onnx")
    for name in names:
        (path.parent / name).parent.mkdir(exist_ok=True)
    onnx.save_model(proto, path)
    return path


def test_external_data_is_read_from_beside_the_model(exported: Path) -> None:
    whole = model.load(exported)
    path = with_external_data(exported, ["b.data", "folder/a.data"])
    loaded = model.load(path)
    assert onnx.load_model_from_string(loaded.onnx).graph == onnx.load_model_from_string(whole.onnx).graph
    frames = np.zeros((1, 64, 64, 3), np.uint8)
    ours, theirs = (OnnxEngine(each).detect(frames)[0].scores for each in (loaded, whole))
    np.testing.assert_array_equal(ours, theirs)


def test_the_digest_is_that_of_all_files(exported: Path) -> None:
    path = with_external_data(exported, ["b.data", "a.data"])
    before = model.load(path).sha256
    assert model.load(path, sha256=before).sha256 == before
    body = bytearray((path.parent / "a.data").read_bytes())
    body[0] ^= 1
    (path.parent / "a.data").write_bytes(body)
    with pytest.raises(InvalidInput, match=r"not .* as MODEL_SHA256 asks"):
        model.load(path, sha256=before)


def test_trial_with_external_data() -> None:
    loaded = model.load(TRIALS / "18-external.onnx")
    # cat 18-external.onnx 18-external.onnx.data | sha256sum
    assert loaded.sha256 == "29474af5dede6ec6d94425cee20b2e7a34c07d3c8e89a885d1653c7d236bd810"
    assert loaded.labels == ("thing0", "thing1")
    engine = OnnxEngine(loaded)
    engine.warm_up()
    assert len(engine.detect(np.zeros((2, 64, 64, 3), np.uint8))) == 2


def test_external_data_that_is_missing_or_cut_off(exported: Path) -> None:
    path = with_external_data(exported, ["a.data"])
    data = path.parent / "a.data"
    body = data.read_bytes()
    data.write_bytes(body[:-8])
    with pytest.raises(
        InvalidInput, match=r"external.onnx: the external data of constant_\d+ lies at .* it is cut off"
    ):
        model.load(path)
    data.unlink()
    with pytest.raises(
        InvalidInput, match=r"is in a.data, which can't be read beside it \(No such file or directory\)"
    ):
        model.load(path)
    data.mkdir()
    with pytest.raises(InvalidInput, match=r"which can't be read beside it \(Is a directory\)"):
        model.load(path)


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "", "folder/../../secret"])
def test_external_data_lies_beside_the_model(exported: Path, location: str) -> None:
    proto = onnx.load_model(exported)
    tensor = proto.graph.initializer[1]
    external_data_helper.set_external_data(tensor, location)
    tensor.ClearField("raw_data")
    exported.write_bytes(proto.SerializeToString())
    with pytest.raises(InvalidInput, match="it must lie beside the model"):
        model.load(exported)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "is empty"),
        (b"nonsense", "is not an ONNX file"),
        (b"<html><body>Please sign in</body></html>", "is not an ONNX file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "is not an ONNX file"),
        (bytes(100), "is not an ONNX file"),
    ],
)
def test_files_that_are_no_onnx(tmp_path: Path, body: bytes, says: str) -> None:
    path = tmp_path / "some.onnx"
    path.write_bytes(body)
    with pytest.raises(InvalidInput, match=f"some.onnx: {says}"):
        model.load(path)


def test_an_onnx_cut_off_anywhere_is_one_sentence(exported: Path) -> None:
    body = exported.read_bytes()
    for length in [*range(1, 200, 7), *range(200, len(body), len(body) // 40)]:
        exported.write_bytes(body[:length])
        with pytest.raises(InvalidInput) as caught:
            OnnxEngine(model.load(exported)).warm_up()
        assert "\n" not in str(caught.value)
        assert "exported" in str(caught.value)


# --- Number of classes ---


def two_step(
    *nodes: onnx.NodeProto, constants: dict[str, list[int]] | None = None, classes: int = 5
) -> onnx.ModelProto:
    """A model of the contract's form whose class numbers come out of `nodes`, from `given` (batch, 16, classes)."""
    arrays = {name: np.array(value, np.int64) for name, value in (constants or {}).items()}
    arrays["zero"] = np.zeros((1, 16, classes), np.float32)
    arrays["zero"][0, :, -1] = 1
    arrays["box"] = np.zeros((1, 16, 4), np.float32)
    arrays["score"] = np.full((1, 16), 0.5, np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Identity", ["zero"], ["given"]),
            helper.make_node("Identity", ["box"], ["boxes"]),
            helper.make_node("Identity", ["score"], ["scores"]),
            *nodes,
        ],
        "mine",
        [helper.make_tensor_value_info("frames", TensorProto.UINT8, ["batch", 32, 48, 3])],
        [
            helper.make_tensor_value_info("boxes", TensorProto.FLOAT, None),
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, None),
            helper.make_tensor_value_info("classes", TensorProto.INT64, None),
        ],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


node = helper.make_node
COUNTED = {
    "argmax": two_step(node("ArgMax", ["given"], ["classes"], axis=2, keepdims=0)),
    "argmax from the end": two_step(
        node("ArgMax", ["given"], ["best"], axis=-1),
        node("Squeeze", ["best", "last"], ["flat"]),
        node("Cast", ["flat"], ["classes"], to=TensorProto.INT64),
        constants={"last": [2]},
    ),
    "top of each": two_step(
        node("TopK", ["given", "one"], ["values", "best"], axis=2),
        node("Reshape", ["best", "flat"], ["classes"]),
        constants={"one": [1], "flat": [0, 16]},
    ),
    "remainder": two_step(
        node("Reshape", ["given", "flat"], ["pairs"]),
        node("TopK", ["pairs", "few"], ["values", "pair"], axis=1),
        node("Mod", ["pair", "five"], ["classes"]),
        constants={"flat": [0, 80], "few": [10], "five": [5]},
    ),
}
UNKNOWN = two_step(
    node("ArgMax", ["given"], ["best"], axis=2, keepdims=0),
    node("Gather", ["table", "best"], ["classes"]),
    constants={"table": [1, 3, 5, 7, 9]},
)


@pytest.mark.parametrize("name", COUNTED)
def test_the_graph_tells_how_many_classes_there_are(name: str, tmp_path: Path) -> None:
    path = tmp_path / "own.onnx"
    path.write_bytes(COUNTED[name].SerializeToString())
    assert onnx_file.count_classes(onnx_file.read(path)) == 5
    with pytest.raises(InvalidInput, match=r"own.onnx: has 5 classes and no labels"):
        model.load(path)
    names = tmp_path / "labels.txt"
    for labels, refused in [(4, True), (5, False), (6, True)]:
        names.write_text("x\n" * labels)
        if refused:
            with pytest.raises(InvalidInput, match=f"labels.txt: has {labels} labels, but the model has 5 classes"):
                model.load(path, names=names)
        else:
            assert len(model.load(path, names=names).labels) == 5


def test_where_it_does_not_tell_a_frame_is_tried(tmp_path: Path) -> None:
    path, names = tmp_path / "own.onnx", tmp_path / "labels.txt"
    path.write_bytes(UNKNOWN.SerializeToString())
    with pytest.raises(InvalidInput, match="a number of classes that the file does not tell and no labels"):
        model.load(path)
    names.write_text("x\n" * 9)
    with pytest.raises(InvalidInput, match="there are 9 labels, but the model has at least 10 classes"):
        model.load(path, names=names)
    names.write_text("x\n" * 10)
    assert len(model.load(path, names=names).labels) == 10


def test_trials_with_two_classes() -> None:
    path = TRIALS / "16-two-classes.onnx"
    with pytest.raises(InvalidInput, match=r"16-two-classes.onnx: has 2 classes and no labels: set MODEL_NAMES"):
        model.load(path)
    with pytest.raises(InvalidInput, match=r"17-one.names: has 1 label, but the model has 2 classes"):
        model.load(path, names=TRIALS / "17-one.names")
    assert model.load(path, names=TRIALS / "32-latin1.names").labels == ("piéton", "car")


def test_an_engine_says_what_a_graph_gives_instead(tmp_path: Path) -> None:
    proto = COUNTED["argmax"]
    broken = onnx.ModelProto()
    broken.CopyFrom(proto)
    broken.graph.initializer[1].CopyFrom(numpy_helper.from_array(np.zeros((1, 16, 5), np.float32), "box"))
    path, names = tmp_path / "own.onnx", tmp_path / "labels.txt"
    names.write_text("x\n" * 5)
    path.write_bytes(broken.SerializeToString())
    with pytest.raises(InvalidInput, match=r"of one frame it gives boxes \[16, 5\], scores \[16\], classes \[16\]"):
        OnnxEngine(model.load(path, names=names)).warm_up()
