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

import numpy as np
from onnx import TensorProto, helper

from vaultml_worker.darknet import Convolution, Convolutional, MaxPool, Network, Route, Shortcut, Upsample, Yolo
from vaultml_worker.onnx_nodes import Nodes
from vaultml_worker.onnx_nodes import Precision as Precision

CANDIDATES = 1000
_LUMA = (0.299, 0.587, 0.114)
"""Parts of red, green and blue in grey (ITU-R BT.601), as Darknet's reader of pictures has them."""
_OPSET = 17  # what every engine in use reads: TensorRT 8.6 and later, onnxruntime 1.13 and later
_IR_VERSION = 8


def build(
    network: Network, convolutions: Sequence[Convolution], labels: Sequence[str], precision: Precision = "fp32"
) -> bytes:
    """Return the serialized graph; `labels` travel in its metadata.

    fp16 halves the convolutions; scaling of the pixels and decoding of the heads stay in fp32.
    """
    graph = Nodes(precision)
    batch = "batch"
    value = _pixels(graph, network.channels)
    outputs: list[str] = []
    heads: list[_Head] = []
    kernels = iter(convolutions)
    for layer in network.layers:
        match layer:
            case Convolutional():
                value = _convolve(graph, value, layer, next(kernels))
            case MaxPool():
                value = _pool(graph, value, layer)
            case Shortcut(source=source, activation=activation):
                value = _activate(graph, graph.add("Add", [value, outputs[source]]), activation)
            case Route():
                value = _route(graph, layer, outputs, network)
            case Upsample(stride=stride):
                value = _upsample(graph, value, stride)
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


_Head = tuple[str, str, str, str]
"""Centres, sizes (both in network pixels), objectness and classes of one head, flattened to (batch, n, …).

The last two are logits, unless a head of the network has `new_coords`: then those of all are probabilities.
"""


def _pixels(graph: Nodes, channels: int) -> str:
    """Return the frames as (batch, channels, height, width) from 0 to 1."""
    value = graph.add("Cast", ["frames"], to=TensorProto.FLOAT)
    if channels == 1:
        value = graph.add("MatMul", [value, graph.constant(np.array(_LUMA, np.float32)[:, None])])
    value = graph.add("Transpose", [value], perm=[0, 3, 1, 2])
    return graph.narrow(graph.add("Div", [value, graph.constant(np.float32(255))]))


def _convolve(graph: Nodes, value: str, layer: Convolutional, convolution: Convolution) -> str:
    value = graph.add(
        "Conv",
        [value, graph.weight(convolution.kernel), graph.weight(convolution.bias)],
        kernel_shape=[layer.size, layer.size],
        strides=list(layer.strides),
        pads=[layer.pad] * 4,
        group=layer.groups,
    )
    return _activate(graph, value, layer.activation)


def _activate(graph: Nodes, value: str, activation: str) -> str:
    match activation:
        case "leaky":
            return graph.add("LeakyRelu", [value], alpha=0.1)
        case "relu":
            return graph.add("Relu", [value])
        case "logistic":
            return graph.add("Sigmoid", [value])
        case "swish":
            return graph.add("Mul", [value, graph.add("Sigmoid", [value])])
        case "mish":
            return graph.add("Mul", [value, graph.add("Tanh", [graph.add("Softplus", [value])])])
        case _:
            return value


def _pool(graph: Nodes, value: str, layer: MaxPool) -> str:
    before, after = layer.pad // 2, layer.pad - layer.pad // 2
    return graph.add(
        "MaxPool",
        [value],
        kernel_shape=[layer.size, layer.size],
        strides=list(layer.strides),
        pads=[before, before, after, after],
    )


def _route(graph: Nodes, layer: Route, outputs: Sequence[str], network: Network) -> str:
    joined = [outputs[source] for source in layer.sources]
    if layer.groups > 1:
        sizes = [network.layers[source].outputs[0] // layer.groups for source in layer.sources]
        joined = [
            graph.slice(value, layer.group * size, (layer.group + 1) * size, axis=1)
            for value, size in zip(joined, sizes, strict=True)
        ]
    return graph.add("Concat", joined, axis=1) if len(joined) > 1 else joined[0]


def _upsample(graph: Nodes, value: str, stride: int) -> str:
    return graph.add(
        "Resize",
        [value, "", graph.constant(np.array([1, 1, stride, stride], np.float32))],
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )


def _decode(graph: Nodes, value: str, head: Yolo, network: Network) -> _Head:
    """Decode one head's output (batch, anchors·(5 + classes), rows, columns): boxes, objectness, classes."""
    _, rows, columns = head.inputs
    anchors, cells, size = len(head.mask), rows * columns, 5 + head.classes
    shaped = graph.add("Reshape", [value, graph.constant(np.array([0, anchors, size, cells], np.int64))])
    ordered = graph.add("Transpose", [shaped], perm=[0, 1, 3, 2])
    flat = graph.add("Reshape", [ordered, graph.constant(np.array([0, anchors * cells, size], np.int64))])
    grid = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), -1).reshape(1, cells, 2)
    # The stretch about the middle of the cell, scale·v − (scale − 1) / 2, has its constant part in the grid.
    cell = np.tile(grid, (1, anchors, 1)).astype(np.float32) - np.float32((head.scale_xy - 1) / 2)
    stride = np.array([network.width / columns, network.height / rows], np.float32)
    sizes = np.repeat(np.array([head.anchors[index] for index in head.mask], np.float32), cells, axis=0)
    centre, extent = graph.slice(flat, 0, 2, axis=2), graph.slice(flat, 2, 4, axis=2)
    present, classes = graph.slice(flat, 4, 5, axis=2), graph.slice(flat, 5, size, axis=2)
    if head.new_coords:
        sizes = 4 * sizes
        extent = graph.add("Mul", [extent, extent])
    else:
        centre = graph.add("Sigmoid", [centre])
        extent = graph.add("Exp", [extent])
        if _has_probabilities(network):
            present, classes = graph.add("Sigmoid", [present]), graph.add("Sigmoid", [classes])
    if head.scale_xy != 1:
        centre = graph.add("Mul", [centre, graph.constant(np.float32(head.scale_xy))])
    centre = graph.add("Mul", [graph.add("Add", [centre, graph.constant(cell)]), graph.constant(stride)])
    return centre, graph.add("Mul", [extent, graph.constant(sizes[None])]), present, classes


def _has_probabilities(network: Network) -> bool:
    """True if the heads' objectness and classes are probabilities already, not logits."""
    return any(head.new_coords for head in network.heads)


def _select(graph: Nodes, heads: Sequence[_Head], network: Network) -> None:
    """The best candidates by objectness, then the best (box, class) pairs of those: several labels per box stay."""
    centres, extents, objectness, labels = (
        graph.add("Concat", [head[part] for head in heads], axis=1) if len(heads) > 1 else heads[0][part]
        for part in range(4)
    )
    total = sum(len(head.mask) * head.inputs[1] * head.inputs[2] for head in network.heads)
    kept = min(CANDIDATES, total)
    last = graph.constant(np.array([2], np.int64))
    flat = graph.add("Squeeze", [objectness, last])
    top, index = graph.add_pair("TopK", [flat, graph.constant(np.array([kept], np.int64))], axis=1)
    rows = graph.add("Unsqueeze", [index, last])
    centre, extent, label = (graph.add("GatherND", [value, rows], batch_dims=1) for value in (centres, extents, labels))
    half = graph.add("Mul", [extent, graph.constant(np.float32(0.5))])
    corners = graph.add("Concat", [graph.add("Sub", [centre, half]), graph.add("Add", [centre, half])], axis=2)
    if not _has_probabilities(network):
        top, label = graph.add("Sigmoid", [top]), graph.add("Sigmoid", [label])
    scores = graph.add("Mul", [label, graph.add("Unsqueeze", [top, last])])
    pairs = graph.add("Reshape", [scores, graph.constant(np.array([0, kept * network.classes], np.int64))])
    wanted = graph.constant(np.array([min(CANDIDATES, kept * network.classes)], np.int64))
    best, pair = graph.add_pair("TopK", [pairs, wanted], axis=1)
    classes = graph.constant(np.array(network.classes, np.int64))
    owner = graph.add("Div", [pair, classes])
    graph.add("GatherND", [corners, graph.add("Unsqueeze", [owner, last])], name="boxes", batch_dims=1)
    graph.add("Identity", [best], name="scores")
    graph.add("Sub", [pair, graph.add("Mul", [owner, classes])], name="classes")
