"""A Darknet network as one ONNX graph that every engine runs: pixels in, boxes, scores and classes out.

The contract of the graph, for ours and for a user's own (docs/models.md):

- input `frames`: uint8, (batch, height, width, 3), RGB, batch dynamic, the rest fixed;
- output `boxes`: float32, (batch, n, 4), x1, y1, x2, y2 in pixels of the input;
- output `scores`: float32, (batch, n), probability of the label, 0..1;
- output `classes`: int32 or int64, (batch, n), number of the label.

Non-maximum suppression is not in it: its output size depends on the data, so it stays on the host.
"""

import json
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from vaultml_worker.darknet import Convolution, Convolutional, MaxPool, Network, Route, Shortcut, Upsample, Yolo

Precision = Literal["fp32", "fp16"]
CANDIDATES = 1000
_OPSET = 17  # what every engine in use reads: TensorRT 8.6 and later, onnxruntime 1.13 and later
_IR_VERSION = 8


def build(
    network: Network, convolutions: Sequence[Convolution], labels: Sequence[str], precision: Precision = "fp32"
) -> bytes:
    """The serialized graph; `labels` travel in its metadata.

    fp16 halves the convolutions; scaling of the pixels and decoding of the heads stay in fp32.
    """
    graph = _Graph(precision)
    batch = "batch"
    value = graph.add("Cast", ["frames"], to=TensorProto.FLOAT)
    value = graph.add("Transpose", [value], perm=[0, 3, 1, 2])
    value = graph.add("Div", [value, graph.constant(np.float32(255))])
    value = graph.narrow(value)
    outputs: list[str] = []
    heads: list[_Head] = []
    kernels = iter(convolutions)
    for layer in network.layers:
        match layer:
            case Convolutional():
                value = _convolve(graph, value, layer, next(kernels))
            case MaxPool(size=size, stride=stride, pad=pad):
                before, after = pad // 2, pad - pad // 2
                value = graph.add(
                    "MaxPool",
                    [value],
                    kernel_shape=[size, size],
                    strides=[stride, stride],
                    pads=[before, before, after, after],
                )
            case Shortcut(source=source, activation=activation):
                value = _activate(graph, graph.add("Add", [value, outputs[source]]), activation)
            case Route(sources=sources):
                joined = [outputs[source] for source in sources]
                value = graph.add("Concat", joined, axis=1) if len(joined) > 1 else joined[0]
            case Upsample(stride=stride):
                scales = graph.constant(np.array([1, 1, stride, stride], np.float32))
                value = graph.add(
                    "Resize",
                    [value, "", scales],
                    mode="nearest",
                    coordinate_transformation_mode="asymmetric",
                    nearest_mode="floor",
                )
            case Yolo():
                heads.append(_decode(graph, graph.widen(value), layer, network))
        outputs.append(value)
    _select(graph, heads, network)
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            network.name,
            [helper.make_tensor_value_info("frames", TensorProto.UINT8, [batch, network.height, network.width, 3])],
            [
                helper.make_tensor_value_info("boxes", TensorProto.FLOAT, [batch, None, 4]),
                helper.make_tensor_value_info("scores", TensorProto.FLOAT, [batch, None]),
                helper.make_tensor_value_info("classes", TensorProto.INT64, [batch, None]),
            ],
            graph.constants,
        ),
        opset_imports=[helper.make_opsetid("", _OPSET)],
        ir_version=_IR_VERSION,
        producer_name="vaultml",
    )
    helper.set_model_props(model, {"vaultml.labels": json.dumps(list(labels)), "vaultml.precision": precision})
    serialized: bytes = model.SerializeToString()
    return serialized


class _Graph:
    """Nodes and constants in the making; `add` gives the name of a node's output."""

    def __init__(self, precision: Precision) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._half = precision == "fp16"

    def add(self, kind: str, inputs: Sequence[str], *, name: str = "", **attributes: Any) -> str:
        output = name or f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], name=output, **attributes))
        return output

    def add_pair(self, kind: str, inputs: Sequence[str], **attributes: Any) -> tuple[str, str]:
        outputs = (f"{kind.lower()}_{len(self.nodes)}_0", f"{kind.lower()}_{len(self.nodes)}_1")
        self.nodes.append(helper.make_node(kind, list(inputs), list(outputs), name=outputs[0], **attributes))
        return outputs

    def constant(self, value: NDArray[Any] | np.generic) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def weight(self, value: NDArray[np.float32]) -> str:
        return self.constant(np.clip(value, -65504, 65504).astype(np.float16) if self._half else value)

    def narrow(self, value: str) -> str:
        return self.add("Cast", [value], to=TensorProto.FLOAT16) if self._half else value

    def widen(self, value: str) -> str:
        return self.add("Cast", [value], to=TensorProto.FLOAT) if self._half else value


_Head = tuple[str, str, str, str]
"""Centres, sizes (both in network pixels), objectness and class logits of one head, flattened to (batch, n, …)."""


def _convolve(graph: _Graph, value: str, layer: Convolutional, convolution: Convolution) -> str:
    value = graph.add(
        "Conv",
        [value, graph.weight(convolution.kernel), graph.weight(convolution.bias)],
        kernel_shape=[layer.size, layer.size],
        strides=[layer.stride, layer.stride],
        pads=[layer.pad] * 4,
        group=layer.groups,
    )
    return _activate(graph, value, layer.activation)


def _activate(graph: _Graph, value: str, activation: str) -> str:
    return graph.add("LeakyRelu", [value], alpha=0.1) if activation == "leaky" else value


def _decode(graph: _Graph, value: str, head: Yolo, network: Network) -> _Head:
    """One head's raw output (batch, anchors·(5 + classes), rows, columns) → boxes, objectness, class logits."""
    _, rows, columns = head.inputs
    anchors, cells, size = len(head.mask), rows * columns, 5 + head.classes
    shaped = graph.add("Reshape", [value, graph.constant(np.array([0, anchors, size, cells], np.int64))])
    ordered = graph.add("Transpose", [shaped], perm=[0, 1, 3, 2])
    flat = graph.add("Reshape", [ordered, graph.constant(np.array([0, anchors * cells, size], np.int64))])
    grid = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), -1).reshape(1, cells, 2)
    stride = np.array([network.width / columns, network.height / rows], np.float32)
    sizes = np.repeat(np.array([head.anchors[index] for index in head.mask], np.float32), cells, axis=0)
    centre = graph.add("Sigmoid", [_columns(graph, flat, 0, 2)])
    centre = graph.add("Add", [centre, graph.constant(np.tile(grid, (1, anchors, 1)).astype(np.float32))])
    centre = graph.add("Mul", [centre, graph.constant(stride)])
    extent = graph.add("Exp", [_columns(graph, flat, 2, 4)])
    extent = graph.add("Mul", [extent, graph.constant(sizes[None])])
    return centre, extent, _columns(graph, flat, 4, 5), _columns(graph, flat, 5, size)


def _columns(graph: _Graph, value: str, start: int, end: int) -> str:
    limits = [graph.constant(np.array([number], np.int64)) for number in (start, end, 2)]
    return graph.add("Slice", [value, *limits])


def _select(graph: _Graph, heads: Sequence[_Head], network: Network) -> None:
    """The best candidates by objectness, then the best (box, class) pairs of those: several labels per box stay."""
    centres, extents, objectness, logits = (
        graph.add("Concat", [head[part] for head in heads], axis=1) if len(heads) > 1 else heads[0][part]
        for part in range(4)
    )
    total = sum(len(head.mask) * head.inputs[1] * head.inputs[2] for head in network.heads)
    kept = min(CANDIDATES, total)
    last = graph.constant(np.array([2], np.int64))
    flat = graph.add("Squeeze", [objectness, last])
    top, index = graph.add_pair("TopK", [flat, graph.constant(np.array([kept], np.int64))], axis=1)
    rows = graph.add("Unsqueeze", [index, last])
    centre, extent, logit = (graph.add("GatherND", [value, rows], batch_dims=1) for value in (centres, extents, logits))
    half = graph.add("Mul", [extent, graph.constant(np.float32(0.5))])
    corners = graph.add("Concat", [graph.add("Sub", [centre, half]), graph.add("Add", [centre, half])], axis=2)
    present = graph.add("Unsqueeze", [graph.add("Sigmoid", [top]), last])
    scores = graph.add("Mul", [graph.add("Sigmoid", [logit]), present])
    pairs = graph.add("Reshape", [scores, graph.constant(np.array([0, kept * network.classes], np.int64))])
    wanted = graph.constant(np.array([min(CANDIDATES, kept * network.classes)], np.int64))
    best, pair = graph.add_pair("TopK", [pairs, wanted], axis=1)
    classes = graph.constant(np.array(network.classes, np.int64))
    owner = graph.add("Div", [pair, classes])
    graph.add("GatherND", [corners, graph.add("Unsqueeze", [owner, last])], name="boxes", batch_dims=1)
    graph.add("Identity", [best], name="scores")
    graph.add("Sub", [pair, graph.add("Mul", [owner, classes])], name="classes")
