"""YOLO detectors as Ultralytics exports them (YOLOv5 to YOLO26: floats in, `output0` out), put into our form.

Frames are scaled and turned inside the graph, the output is split into boxes, scores and classes, and a batch that is
fixed at one frame is made dynamic. What comes out is compared with what went in before it is used.
"""

import ast
import re
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from vaultml_worker.engines.onnx import run_once
from vaultml_worker.onnx_file import OnnxFile, describe
from vaultml_worker.onnx_graph import CANDIDATES
from vaultml_worker.onnx_nodes import Nodes
from vaultml_worker.records import InvalidInput

EXPORT = "yolo export model=… format=onnx imgsz=640 dynamic=False nms=False"
_STRIDES = ((8, 16, 32), (8, 16, 32, 64), (16, 32))
_CHOSEN_VALUES = 6
_OLDEST_OPSET = 12
_TOLERANCE = 1e-3
"""Of the largest number in the output: how far a frame in a batch may differ from the same frame alone."""


def is_detector(file: OnnxFile) -> bool:
    """True if the model takes float pictures (batch, 3, height, width) and gives one value of three dimensions."""
    inputs, outputs = file.inputs(), file.proto.graph.output
    if len(inputs) != 1 or not outputs:
        return False
    tensor = inputs[0].type.tensor_type
    sides = [side.dim_value for side in tensor.shape.dim]
    floats = tensor.elem_type in (TensorProto.FLOAT, TensorProto.FLOAT16)
    return floats and len(sides) == 4 and sides[1] == 3 and len(outputs[0].type.tensor_type.shape.dim) in (0, 3)


@dataclass(frozen=True, slots=True)
class _Layout:
    """What an output holds: `anchors` times x, y, w, h [objectness] classes…, or `chosen` corners, score, class.

    `values_first`: it is (values, anchors), not (anchors, values). `classes` is None where the shape does not tell.
    """

    anchors: int
    classes: int | None
    values_first: bool = False
    objectness: bool = False
    chosen: bool = False


def adapt(file: OnnxFile) -> tuple[OnnxFile, int | None]:
    """Return the model in the form of docs/models.md, and its number of classes, None if unknown.

    Raises InvalidInput with what to export instead.
    """
    _check_kind(file)
    height, width = _size(file)
    proto = onnx.ModelProto()
    proto.CopyFrom(file.proto)
    image = next(item for item in proto.graph.input if item.name == file.inputs()[0].name)
    batch = image.type.tensor_type.shape.dim[0].dim_value
    if batch > 1:
        raise InvalidInput(f"{file.path}: its batch is fixed at {batch}: export it with batch=1, or {EXPORT}")
    _free_the_batch(proto, image, (height, width))
    alone, together = _try(file, proto, height, width)
    if batch and not _agree(alone, together):
        raise InvalidInput(f"{file.path}: its batch is fixed at 1: export it with dynamic=True imgsz={height},{width}")
    classes = _wrap(file, proto, (height, width), alone.shape[1:])
    return OnnxFile(file.path, proto, file.sha256), classes


def _check_kind(file: OnnxFile) -> None:
    outputs = file.proto.graph.output
    task = file.metadata.get("task", "detect")
    if task != "detect" or len(outputs) != 1:
        found = ", ".join(describe(item) for item in outputs)
        kind = "" if task == "detect" else f" of task {task}"
        raise InvalidInput(f"{file.path}: is a model{kind} with the outputs {found}; a detector has one: {EXPORT}")
    opset = max((item.version for item in file.proto.opset_import if item.domain in ("", "ai.onnx")), default=0)
    if opset < _OLDEST_OPSET:
        raise InvalidInput(f"{file.path}: its opset is {opset}: export it with opset={_OLDEST_OPSET} or later")


def _size(file: OnnxFile) -> tuple[int, int]:
    """Return height and width of the pictures: what the input says, else the metadata of a dynamic export."""
    sides = [side.dim_value for side in file.inputs()[0].type.tensor_type.shape.dim][2:]
    if not all(sides) and re.fullmatch(r"\[\d{1,5}, *\d{1,5}\]", said := file.metadata.get("imgsz", "")):
        sides = ast.literal_eval(said)
    if not all(sides):
        raise InvalidInput(f"{file.path}: height and width of its input are not fixed: {EXPORT}")
    return sides[0], sides[1]


def _free_the_batch(proto: onnx.ModelProto, image: onnx.ValueInfoProto, size: tuple[int, int]) -> None:
    """Make the batch dynamic: where shapes begin with 1, "as many as there are" takes its place."""
    graph = proto.graph
    constants = {item.name: item for item in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            constants[node.output[0]] = node.attribute[0].t
    for number, node in enumerate(graph.node):
        kept = any(item.name == "allowzero" and item.i for item in node.attribute)
        if node.op_type != "Reshape" or node.input[1] not in constants or kept:
            continue
        shape = numpy_helper.to_array(constants[node.input[1]])
        if shape.size > 1 and shape.reshape(-1)[0] == 1:
            graph.initializer.append(
                numpy_helper.from_array(np.array([0, *shape[1:]], np.int64), f"vaultml_shape_{number}")
            )
            node.input[1] = f"vaultml_shape_{number}"
    del graph.value_info[:]
    sides = image.type.tensor_type.shape.dim
    sides[0].Clear()
    sides[0].dim_param = "batch"
    for side, pixels in zip(sides[2:], size, strict=True):
        side.dim_value = pixels
    kind = graph.output[0].type.tensor_type.elem_type
    graph.output[0].CopyFrom(helper.make_tensor_value_info(graph.output[0].name, kind, None))


def _try(
    file: OnnxFile, proto: onnx.ModelProto, height: int, width: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return what the model as it is says of two pictures one by one, and what the changed one says of both at once."""
    name, output = file.inputs()[0].name, [file.proto.graph.output[0].name]
    half = file.inputs()[0].type.tensor_type.elem_type == TensorProto.FLOAT16
    pictures = (
        np.random.default_rng(0).random((2, 3, height, width), np.float32).astype(np.float16 if half else np.float32)
    )
    body = file.proto.SerializeToString()
    alone = [run_once(file.path, body, {name: pictures[index : index + 1]}, output)[0] for index in range(2)]
    if any(item.ndim != 3 for item in alone):
        raise InvalidInput(f"{file.path}: its output has the shape {list(alone[0].shape)}; {EXPORT}")
    try:
        (together,) = run_once(file.path, proto.SerializeToString(), {name: pictures}, output)
    except InvalidInput:
        together = np.empty((0, 0, 0), np.float32)
    return np.concatenate(alone).astype(np.float32), together.astype(np.float32)


def _agree(alone: NDArray[np.float32], together: NDArray[np.float32]) -> bool:
    if alone.shape != together.shape or not np.isfinite(alone).all():
        return False
    return float(np.abs(alone - together).max()) <= _TOLERANCE * float(np.abs(alone).max())


def _wrap(file: OnnxFile, proto: onnx.ModelProto, size: tuple[int, int], shape: tuple[int, ...]) -> int | None:
    """Put pixels before the graph and a selection behind it; gives the number of classes."""
    graph = proto.graph
    layout = _layout(file, size, shape)
    image, kind = file.inputs()[0].name, file.inputs()[0].type.tensor_type.elem_type
    before = Nodes(prefix="vaultml_in_")
    pixels = before.add("Cast", ["frames"], to=TensorProto.FLOAT)
    pixels = before.add("Transpose", [pixels], perm=[0, 3, 1, 2])
    pixels = before.add("Div", [pixels, before.constant(np.float32(255))])
    before.add("Cast", [pixels], to=kind, name=image)
    behind = Nodes(prefix="vaultml_out_")
    value = behind.add("Cast", [graph.output[0].name], to=TensorProto.FLOAT)
    if layout.chosen:
        _split(behind, value, layout.anchors)
    else:
        value = behind.add("Transpose", [value], perm=[0, 2, 1]) if layout.values_first else value
        _select(behind, value, layout)
    nodes = [*before.nodes, *graph.node, *behind.nodes]
    graph.initializer.extend([*before.constants, *behind.constants])
    kept = [item for item in graph.input if item.name != image]
    for field in (graph.node, graph.input, graph.output):
        del field[:]
    graph.node.extend(nodes)
    graph.input.extend([helper.make_tensor_value_info("frames", TensorProto.UINT8, ["batch", *size, 3]), *kept])
    graph.output.extend(
        helper.make_tensor_value_info(name, kind, ["batch", None, *sides])
        for name, kind, sides in (
            ("boxes", TensorProto.FLOAT, [4]),
            ("scores", TensorProto.FLOAT, []),
            ("classes", TensorProto.INT64, []),
        )
    )
    return layout.classes


def _layout(file: OnnxFile, size: tuple[int, int], shape: tuple[int, ...]) -> _Layout:
    for strides in _STRIDES:
        cells = sum((size[0] // stride) * (size[1] // stride) for stride in strides)
        for anchors, objectness in ((cells, False), (3 * cells, True)):
            for first in (True, False):
                classes = shape[0 if first else 1] - (5 if objectness else 4)
                if anchors == shape[1 if first else 0] and classes > 0:
                    return _Layout(anchors, classes, first, objectness)
    if shape[1] == _CHOSEN_VALUES and shape[0] <= CANDIDATES:
        return _Layout(shape[0], None, chosen=True)
    raise InvalidInput(
        f"{file.path}: its output {list(shape)} is not that of a YOLO detector for {size[1]} x {size[0]} pixels; "
        f"{EXPORT}"
    )


def _split(graph: Nodes, value: str, anchors: int) -> None:
    """Split what the model has chosen itself: (batch, anchors, x1 y1 x2 y2 score class)."""
    flat = graph.constant(np.array([0, anchors], np.int64))
    graph.add("Identity", [graph.slice(value, 0, 4, axis=2)], name="boxes")
    graph.add("Reshape", [graph.slice(value, 4, 5, axis=2), flat], name="scores")
    numbers = graph.add("Reshape", [graph.slice(value, 5, 6, axis=2), flat])
    graph.add("Cast", [numbers], to=TensorProto.INT64, name="classes")


def _select(graph: Nodes, value: str, layout: _Layout) -> None:
    """Add the best candidates of (batch, anchors, x y w h [objectness] classes…): each with its best class."""
    centre, extent = graph.slice(value, 0, 2, axis=2), graph.slice(value, 2, 4, axis=2)
    half = graph.add("Mul", [extent, graph.constant(np.float32(0.5))])
    corners = graph.add("Concat", [graph.add("Sub", [centre, half]), graph.add("Add", [centre, half])], axis=2)
    first, anchors = 5 if layout.objectness else 4, layout.anchors
    scores = graph.slice(value, first, first + (layout.classes or 0), axis=2)
    if layout.objectness:
        scores = graph.add("Mul", [scores, graph.slice(value, 4, 5, axis=2)])
    one = graph.constant(np.array([1], np.int64))
    flat = graph.constant(np.array([0, anchors], np.int64))
    best, label = (graph.add("Reshape", [part, flat]) for part in graph.add_pair("TopK", [scores, one], axis=2))
    kept = min(CANDIDATES, anchors)
    top, index = graph.add_pair("TopK", [best, graph.constant(np.array([kept], np.int64))], axis=1)
    rows = graph.add("Reshape", [index, graph.constant(np.array([0, kept, 1], np.int64))])
    graph.add("GatherND", [corners, rows], name="boxes", batch_dims=1)
    graph.add("Identity", [top], name="scores")
    graph.add("GatherND", [label, rows], name="classes", batch_dims=1)
