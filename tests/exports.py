"""A detector of the form that Ultralytics exports, with random weights."""

from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

SIZE = (64, 96)
"""Height and width."""
CELLS = 8 * 12 + 4 * 6 + 2 * 3
CLASSES = 3


def exported(
    path: Path,
    *,
    batch: int | str = 1,
    size: tuple[int | str, int | str] = SIZE,
    objectness: bool = False,
    first: bool = True,
    half: bool = False,
    opset: int = 17,
    strides: tuple[int, ...] = (8, 16, 32),
    metadata: dict[str, str] | None = None,
    outputs: int = 1,
    constants: bool = False,
) -> Path:
    """A network with random weights: one convolution per stride, reshaped to the batch that it is exported for."""
    random = np.random.default_rng(3)
    kind, number = (TensorProto.FLOAT16, np.float16) if half else (TensorProto.FLOAT, np.float32)
    values, anchors = 4 + objectness + CLASSES, 3 if objectness else 1
    nodes, tensors = [], []

    def constant(name: str, value: np.ndarray) -> str:
        tensor = numpy_helper.from_array(value, name)
        if constants:
            nodes.append(helper.make_node("Constant", [], [name], value=tensor))
        else:
            tensors.append(tensor)
        return name

    parts = []
    for stride in strides:
        kernel = random.normal(0, 0.2, (anchors * values, 3, stride, stride)) / stride
        tensors.append(numpy_helper.from_array(kernel.astype(number), f"kernel{stride}"))
        nodes.append(helper.make_node("Conv", ["images", f"kernel{stride}"], [f"conv{stride}"], strides=[stride] * 2))
        flat = constant(f"flat{stride}", np.array([batch if isinstance(batch, int) else 0, values, -1], np.int64))
        nodes.append(helper.make_node("Reshape", [f"conv{stride}", flat], [f"part{stride}"]))
        parts.append(f"part{stride}")
    nodes.append(helper.make_node("Concat", parts, ["all"], axis=2))
    zero, four, one, end = (constant(f"number{value}", np.array([value], np.int64)) for value in (0, 4, 1, 99))
    nodes.append(helper.make_node("Slice", ["all", zero, four, one], ["raw"]))
    nodes.append(helper.make_node("Abs", ["raw"], ["sizes"]))
    tensors.append(numpy_helper.from_array(np.array(30, number), "thirty"))
    nodes.append(helper.make_node("Mul", ["sizes", "thirty"], ["boxes_"]))
    nodes.append(helper.make_node("Slice", ["all", four, end, one], ["logits"]))
    nodes.append(helper.make_node("Sigmoid", ["logits"], ["scores_"]))
    nodes.append(helper.make_node("Concat", ["boxes_", "scores_"], ["joined"], axis=1))
    if first:
        nodes.append(helper.make_node("Identity", ["joined"], ["output0"]))
    else:
        nodes.append(helper.make_node("Transpose", ["joined"], ["output0"], perm=[0, 2, 1]))
    graph = helper.make_graph(
        nodes,
        "yolo",
        [helper.make_tensor_value_info("images", kind, [batch, 3, *size])],
        [helper.make_tensor_value_info(name, kind, None) for name in ["output0", "raw"][:outputs]],
        tensors,
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    helper.set_model_props(proto, {"names": "{0: 'a', 1: 'b', 2: 'c'}"} if metadata is None else metadata)
    path.write_bytes(proto.SerializeToString())
    return path
