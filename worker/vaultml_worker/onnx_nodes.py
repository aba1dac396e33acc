"""Nodes and constants of an ONNX graph in the making."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Precision = Literal["fp32", "fp16"]


class Nodes:
    """Nodes and constants in the making; `add` gives the name of a node's output.

    Names begin with `prefix`, so that they can be added to a graph that has its own.
    """

    def __init__(self, precision: Precision = "fp32", prefix: str = "") -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._half = precision == "fp16"
        self._prefix = prefix

    def add(self, kind: str, inputs: Sequence[str], *, name: str = "", **attributes: Any) -> str:
        """Add a node with one output, called `name` or numbered."""
        output = name or f"{self._prefix}{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], name=output, **attributes))
        return output

    def add_pair(self, kind: str, inputs: Sequence[str], **attributes: Any) -> tuple[str, str]:
        """Add a node with two outputs."""
        name = f"{self._prefix}{kind.lower()}_{len(self.nodes)}"
        outputs = (f"{name}_0", f"{name}_1")
        self.nodes.append(helper.make_node(kind, list(inputs), list(outputs), name=outputs[0], **attributes))
        return outputs

    def slice(self, value: str, start: int, end: int, *, axis: int) -> str:
        """Add a slice from `start` up to `end` along one axis."""
        limits = [self.constant(np.array([number], np.int64)) for number in (start, end, axis)]
        return self.add("Slice", [value, *limits])

    def constant(self, value: NDArray[Any] | np.generic) -> str:
        """Add a constant; gives its name."""
        name = f"{self._prefix}constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def weight(self, value: NDArray[np.float32]) -> str:
        """Add a constant in the precision of the convolutions."""
        return self.constant(np.clip(value, -65504, 65504).astype(np.float16) if self._half else value)

    def narrow(self, value: str) -> str:
        """Convert a float32 value to the precision of the convolutions."""
        return self.add("Cast", [value], to=TensorProto.FLOAT16) if self._half else value

    def widen(self, value: str) -> str:
        """Convert a value in the precision of the convolutions to float32."""
        return self.add("Cast", [value], to=TensorProto.FLOAT) if self._half else value
