"""The real parser and builder of TensorRT for RTX take our graphs, and the real bindings have every name in use."""

import ast
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import vaultml_worker
from benchmarks.networks import write_random
from testbed import darknet as original
from testbed.gpu import double, rtx
from testbed.gpu import pycuda as pycuda_
from tests.exports import exported
from tests.networks import MIXED, YOLOV4, YOLOV4_TINY, YOLOV7_TINY
from tests.parts import need
from tests.real.gpu import Heard, importable, small_model
from vaultml_worker import cli, darknet, model
from vaultml_worker.engines import EngineStopped, Options
from vaultml_worker.engines.tensorrt import bindings, build_ahead
from vaultml_worker.onnx_graph import Precision
from vaultml_worker.records import InvalidInput, Model

SEED = int(os.environ.get("VAULTML_SEED", "20261125"))
ADA, BLACKWELL = (8, 9), (12, 0)
ENGINE = Path(vaultml_worker.__file__).parent / "engines" / "tensorrt"


@pytest.fixture(scope="module", autouse=True)
def trt() -> Iterator[Any]:
    """The module."""
    need(rtx.available())
    with importable(rtx.installed(), "tensorrt_rtx_bindings"):
        module, flavour = bindings.tensorrt()
        assert flavour == bindings.RTX
        yield module


@pytest.fixture(scope="module")
def cfgs(tiny: Path) -> Mapping[str, Path]:
    need(original.available())
    return {
        "yolov3": Path(vaultml_worker.__file__).parent / "data/yolov3.cfg",
        "yolov3-tiny": tiny / "yolov3-tiny.cfg",
        "yolov3-spp": original.CFG / "yolov3-spp.cfg",
    }


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
@pytest.mark.parametrize("name", ["yolov3", "yolov3-tiny", "yolov3-spp"])
def test_it_builds_our_networks(cfgs: Mapping[str, Path], tmp_path: Path, name: str, precision: Precision) -> None:
    cfg = cfgs[name]
    weights = tmp_path / f"{name}.weights"
    write_random(darknet.read_cfg(cfg), weights, SEED)
    loaded = model.load(cfg, weights, precision=precision)
    for target in (ADA, BLACKWELL):
        heard = Heard()
        built = build_ahead(loaded, Options(tmp_path, max_batch=8, observer=heard), target)
        assert built.path is not None
        assert built.path.stat().st_size > built.size > len(loaded.onnx) * 0.9
        assert heard.progress == sorted(heard.progress)
        assert heard.progress[-1] == 1.0
    assert len(list(tmp_path.glob("*.engine"))) == 2


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
@pytest.mark.parametrize("name", ["yolov4", "yolov4-tiny", "yolov7-tiny", "mixed", "grey"])
def test_it_builds_what_later_networks_are_made_of(tmp_path: Path, name: str, precision: Precision) -> None:
    texts = {"yolov4": YOLOV4, "yolov4-tiny": YOLOV4_TINY, "yolov7-tiny": YOLOV7_TINY, "mixed": MIXED}
    cfg = tmp_path / f"{name}.cfg"
    cfg.write_text(texts.get(name, YOLOV4_TINY.replace("channels=3", "channels=1")))
    cfg.with_suffix(".names").write_text("a\nb\nc\n")
    write_random(darknet.read_cfg(cfg), cfg.with_suffix(".weights"), SEED)
    built = build_ahead(model.load(cfg, precision=precision), Options(tmp_path, max_batch=4), ADA)
    assert built.path is not None


@pytest.mark.parametrize("form", [{}, {"objectness": True}, {"half": True, "first": False}, {"opset": 12}], ids=str)
def test_it_builds_adapted_exports(tmp_path: Path, form: dict[str, Any]) -> None:
    built = build_ahead(model.load(exported(tmp_path / "yolo.onnx", **form)), Options(tmp_path, max_batch=4), ADA)
    assert built.path is not None


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return small_model(tmp_path_factory.mktemp("small"), SEED)


def test_a_graph_that_it_cannot_take_is_named(small: Model, tmp_path: Path) -> None:
    broken = Model(small.name, small.sha256, small.onnx.replace(b"LeakyRelu", b"LeakyRel_"), 32, 32, small.labels)
    with pytest.raises(InvalidInput, match=r"TensorRT can't take this model: node .*LeakyRel_"):
        build_ahead(broken, Options(tmp_path), ADA)


def test_an_unknown_target_is_refused(small: Model, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="can't build for sm10"):
        build_ahead(small, Options(tmp_path), (1, 0))


def test_a_build_can_be_given_up(small: Model, tmp_path: Path) -> None:
    with pytest.raises(EngineStopped):
        build_ahead(small, Options(tmp_path, stopped=lambda: True), ADA)
    assert list(tmp_path.glob("*.engine")) == []


def test_the_command_builds_once(tiny: Path, tmp_path: Path) -> None:
    command = ["model", "build", str(tiny / "yolov3-tiny.cfg"), "--target", "sm89", "--cache", str(tmp_path)]
    first, second = (CliRunner().invoke(cli.cli, command) for _ in range(2))
    assert first.exit_code == 0, first.output
    (path,) = tmp_path.glob("*.engine")
    assert first.stdout.startswith(f"{path}: ")
    assert second.stdout == f"{first.stdout.rpartition(',')[0]}, was there already\n"


# ---- names

# What the engine's variables hold: their class in the real bindings, and in the double.
OBJECTS = {
    "builder": ("Builder", "Builder"),
    "network": ("INetworkDefinition", "_Network"),
    "parser": ("OnnxParser", "OnnxParser"),
    "error": ("ParserError", "_ParserError"),
    "config": ("IBuilderConfig", "_Config"),
    "profile": ("IOptimizationProfile", "_Profile"),
    "engine": ("ICudaEngine", "_Engine"),
    "_runtime": ("Runtime", "Runtime"),
    "_context": ("IExecutionContext", "_Context"),
    "settings": ("IRuntimeConfig", "_RuntimeConfig"),
    "_kernels": ("IRuntimeCache", "_RuntimeCache"),
}
FILES = ("build.py", "execution.py", "load.py")


def used() -> set[tuple[str, str]]:
    """(class, attribute) of each use of TensorRT; the class is empty for a name of the module itself."""
    found = set()
    for name in FILES:
        for node in ast.walk(ast.parse((ENGINE / name).read_text())):
            if not isinstance(node, ast.Attribute):
                continue
            owner = called(node.value)
            if owner in ("trt", "_trt"):
                found.add(("", node.attr))
            elif owner in OBJECTS:
                found.add((OBJECTS[owner][0], node.attr))
            elif isinstance(node.value, ast.Attribute) and called(node.value.value) in ("trt", "_trt"):
                found.add((owner, node.attr))  # a value of an enumeration
    return found


def called(node: ast.expr) -> str:
    """The last part of a name: config, self._context → _context."""
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def test_every_name_in_use_is_in_the_real_bindings(trt: Any) -> None:
    names = used()
    assert {("ICudaEngine", "num_io_tensors"), ("DataType", "UINT8"), ("", "Runtime")} <= names
    assert len(names) > 50, "the search finds too little"
    missing = [
        f"{owner}.{name}" for owner, name in sorted(names) if not hasattr(getattr(trt, owner) if owner else trt, name)
    ]
    assert missing == []


# TensorRT itself can't be loaded without its libraries, which no package registry has; its names can be read.
ONLY_RTX = {
    *("ComputeCapability", "num_compute_capabilities", "set_compute_capability"),
    *("IRuntimeCache", "create_runtime_cache", "set_runtime_cache", "deserialize"),
    *("DynamicShapesKernelSpecializationStrategy", "dynamic_shapes_kernel_specialization_strategy", "EAGER"),
}


def test_every_name_in_use_is_in_the_real_bindings_of_tensorrt_itself() -> None:
    body = (rtx.installed() / "tensorrt_bindings" / "tensorrt.so").read_bytes()
    names = {name for pair in used() for name in pair if name and not name.startswith("__")} - ONLY_RTX
    # Only its end is marked: the linker stores a name that is the end of a longer one within that.
    assert [name for name in sorted(names) if name.encode() + b"\0" not in body] == []


def test_the_double_has_no_name_that_the_real_bindings_lack(trt: Any) -> None:
    invented = []
    for real, own in OBJECTS.values():
        names = [name for name in vars(getattr(double, own)) if not name.startswith("_")]
        invented += [f"{real}.{name}" for name in names if not hasattr(getattr(trt, real), name)]
    assert invented == []


def test_every_pycuda_name_in_use_is_in_the_real_pycuda() -> None:
    need(pycuda_.available())
    stub = (pycuda_.installed() / "pycuda" / "driver.py").read_text() + pycuda_.library().read_bytes().decode("latin-1")
    names = set()
    for path in ENGINE.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute):
                owner = node.value
                if (owner.id if isinstance(owner, ast.Name) else getattr(owner, "attr", "")) in ("cuda", "_cuda"):
                    names.add(node.attr)
    assert len(names) > 8
    assert [name for name in sorted(names) if name not in stub] == []
