"""The double of TensorRT on a real GPU: PyTorch computes, on the streams and addresses that the engine gave it.

For a machine with a GPU, the real driver and PyTorch, where TensorRT itself can't be had: pycuda, buffers, streams and
events are then real, and so is the time that copies and computing take; only TensorRT's kernels are not.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch.nn import functional

from testbed.gpu import double

_ONNX_TYPES = {
    onnx.TensorProto.FLOAT: torch.float32,
    onnx.TensorProto.FLOAT16: torch.float16,
    onnx.TensorProto.INT32: torch.int32,
    onnx.TensorProto.INT64: torch.int64,
}
_POINTERS = {
    double.DataType.UINT8: "|u1",
    double.DataType.HALF: "<f2",
    double.DataType.FLOAT: "<f4",
    double.DataType.INT32: "<i4",
    double.DataType.INT64: "<i8",
}

torch.set_grad_enabled(False)
# No search for the fastest kernels (cudnn.benchmark): it takes seconds for each size, and a worker's batches have all.


class Graph:
    """An ONNX graph of ours as PyTorch computes it. ValueError for an operator that our graphs don't have."""

    def __init__(self, model: bytes, device: str) -> None:
        graph = onnx.load_model_from_string(model).graph
        self._nodes = list(graph.node)
        self._attributes = [
            {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute} for node in self._nodes
        ]
        # Shapes, axes and the like are read on the host; else each would be a wait for the GPU.
        self._host = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
        self._constants = {name: _constant(value, device) for name, value in self._host.items()}
        if unknown := {node.op_type for node in self._nodes} - _OPERATORS.keys():
            raise ValueError(f"operators {', '.join(sorted(unknown))}")

    def run(self, frames: torch.Tensor, outputs: Sequence[str]) -> list[torch.Tensor]:
        """The outputs for uint8 frames (n, height, width, 3)."""
        known = {**self._constants, "frames": frames}
        for node, attributes in zip(self._nodes, self._attributes, strict=True):
            given = [known[name] if name else None for name in node.input]
            host = [self._host.get(name) for name in node.input]
            made = _OPERATORS[node.op_type](given, host, attributes)
            known.update(zip(node.output, made if isinstance(made, tuple) else (made,), strict=True))
        return [known[name] for name in outputs]


def _constant(value: NDArray[Any], device: str) -> torch.Tensor:
    tensor = torch.from_numpy(value.copy()).to(device)
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


Operator = Callable[[Sequence[Any], Sequence[Any], Mapping[str, Any]], Any]


def _convolution(given: Sequence[Any], _host: Sequence[Any], attributes: Mapping[str, Any]) -> torch.Tensor:
    image, weights, *bias = given
    top, left, bottom, right = attributes.get("pads", (0, 0, 0, 0))
    if (top, left) != (bottom, right):
        image, top, left = functional.pad(image, (left, right, top, bottom)), 0, 0
    return functional.conv2d(
        image.contiguous(memory_format=torch.channels_last),
        weights,
        bias[0] if bias else None,
        attributes.get("strides", (1, 1)),
        (top, left),
        attributes.get("dilations", (1, 1)),
        attributes.get("group", 1),
    )


def _pooling(given: Sequence[Any], _host: Sequence[Any], attributes: Mapping[str, Any]) -> torch.Tensor:
    top, left, bottom, right = attributes.get("pads", (0, 0, 0, 0))
    padded = functional.pad(given[0], (left, right, top, bottom), value=float("-inf"))
    return functional.max_pool2d(padded, attributes["kernel_shape"], attributes["strides"])


def _slice(given: Sequence[Any], host: Sequence[Any], _attributes: Mapping[str, Any]) -> torch.Tensor:
    starts, ends, axes = (each.tolist() for each in host[1:4])
    cut = [slice(None)] * given[0].dim()
    for start, end, axis in zip(starts, ends, axes, strict=True):
        cut[axis] = slice(start, end)
    return given[0][tuple(cut)]


def _reshape(given: Sequence[Any], host: Sequence[Any], _attributes: Mapping[str, Any]) -> torch.Tensor:
    return given[0].reshape([given[0].shape[axis] if size == 0 else size for axis, size in enumerate(host[1].tolist())])


def _resize(given: Sequence[Any], host: Sequence[Any], _attributes: Mapping[str, Any]) -> torch.Tensor:
    return functional.interpolate(given[0], scale_factor=host[2].tolist()[2:], mode="nearest")


def _top(given: Sequence[Any], host: Sequence[Any], attributes: Mapping[str, Any]) -> tuple[torch.Tensor, ...]:
    return tuple(torch.topk(given[0], int(host[1].item()), attributes["axis"]))


def _gather(given: Sequence[Any], _host: Sequence[Any], _attributes: Mapping[str, Any]) -> torch.Tensor:
    """Rows by number, `batch_dims` being 1 and the numbers (n, k, 1)."""
    rows, numbers = given
    return rows.gather(1, numbers.expand(-1, -1, rows.shape[2]))


def _divide(given: Sequence[Any], _host: Sequence[Any], _attributes: Mapping[str, Any]) -> torch.Tensor:
    if given[0].is_floating_point():
        return given[0] / given[1]
    return torch.div(given[0], given[1], rounding_mode="trunc")


_OPERATORS: dict[str, Operator] = {
    "Add": lambda given, _host, _a: given[0] + given[1],
    "Cast": lambda given, _host, a: given[0].to(_ONNX_TYPES[a["to"]]),
    "Concat": lambda given, _host, a: torch.cat(given, a["axis"]),
    "Conv": _convolution,
    "Div": _divide,
    "Exp": lambda given, _host, _a: torch.exp(given[0]),
    "GatherND": _gather,
    "Identity": lambda given, _host, _a: given[0],
    "LeakyRelu": lambda given, _host, a: functional.leaky_relu(given[0], a["alpha"]),
    "MaxPool": _pooling,
    "Mul": lambda given, _host, _a: given[0] * given[1],
    "Reshape": _reshape,
    "Resize": _resize,
    "Sigmoid": lambda given, _host, _a: torch.sigmoid(given[0]),
    "Slice": _slice,
    "Squeeze": lambda given, host, _a: given[0].squeeze(tuple(host[1].tolist())),
    "Sub": lambda given, _host, _a: given[0] - given[1],
    "TopK": _top,
    "Transpose": lambda given, _host, a: given[0].permute(a["perm"]),
    "Unsqueeze": lambda given, host, _a: given[0].unsqueeze(int(host[1].item())),
}


class _Memory:
    """Memory of the engine's, as PyTorch takes it without a copy."""

    def __init__(self, address: int, shape: tuple[int, ...], kind: str) -> None:
        self.__cuda_array_interface__ = {
            "data": (address, False),
            "shape": shape,
            "typestr": kind,
            "strides": None,
            "version": 3,
        }


class _Context(double._Context):
    def _enqueue(self, stream: int) -> bool:
        """Enqueue the batch on the GPU's own stream."""
        engine, frames = self._engine, self._frames
        try:
            with torch.cuda.stream(torch.cuda.ExternalStream(stream)):
                given = self._tensor("frames", (frames, *engine.frame))
                for name, made in zip(engine.outputs, engine.graph.run(given, engine.outputs), strict=True):
                    self._tensor(name, (frames, *engine.shapes[name])).copy_(made)
        except torch.OutOfMemoryError as error:
            engine.logger.log(double.ILogger.ERROR, str(error))
            return False
        return True

    def _tensor(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        kind = _POINTERS[self._engine.get_tensor_dtype(name)]
        return torch.as_tensor(_Memory(self._addresses[name], shape, kind), device="cuda")


class _Engine(double._Engine):
    _context = _Context

    def __init__(self, body: bytes, most: int, outputs: Sequence[str], logger: double.ILogger) -> None:
        super().__init__(body, most, outputs, logger)
        self.graph = Graph(body, "cuda")


class Runtime(double.Runtime):
    """Loads plans, for the GPU."""

    _engine = _Engine
