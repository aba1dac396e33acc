"""ONNX files as users give them: reading with external data, the contract of docs/models.md, the number of classes."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper
from onnx.external_data_helper import uses_external_data

from vaultml_worker.engines.onnx import run_once
from vaultml_worker.records import InvalidInput

WANTED = (
    "docs/models.md tells what a model must be: input frames uint8 [batch, height, width, 3], outputs boxes, scores, "
    "classes; or a YOLO detector as Ultralytics exports it"
)
_LARGEST = 2**31 - 1
"""Bytes of the largest graph that can be passed on: a limit of protobuf."""


@dataclass(frozen=True, slots=True)
class OnnxFile:
    """An ONNX file with everything in it; `sha256` is that of the file and its external data, one after the other."""

    path: Path
    proto: onnx.ModelProto
    sha256: str

    @property
    def metadata(self) -> dict[str, str]:
        """Its metadata."""
        return {item.key: item.value for item in self.proto.metadata_props}

    def inputs(self) -> list[onnx.ValueInfoProto]:
        """Return the inputs that are no constants."""
        constants = {item.name for item in self.proto.graph.initializer}
        return [item for item in self.proto.graph.input if item.name not in constants]


def read(path: Path) -> OnnxFile:
    """Read an ONNX file and its external data, which lies in files beside it. Raises InvalidInput."""
    try:
        body = path.read_bytes()
    except OSError as error:
        raise InvalidInput(f"{path}: can't be read ({error.strerror})") from None
    if not body:
        raise InvalidInput(f"{path}: is empty")
    try:
        proto = onnx.load_model_from_string(body)
    except Exception:  # protobuf's DecodeError has no public home
        raise InvalidInput(f"{path}: is not an ONNX file, or is cut off") from None
    if not proto.graph.node:
        raise InvalidInput(f"{path}: is not an ONNX file: it has no graph")
    digest = hashlib.sha256(body)
    parts = _Parts(path.parent)
    for tensor in _tensors(proto.graph):
        if uses_external_data(tensor):
            try:
                parts.fill(tensor)
            except InvalidInput as error:
                raise InvalidInput(f"{path}: {error}") from None
    for name in sorted(parts.read):
        digest.update(parts.read[name])
    if sum(map(len, parts.read.values())) + len(body) > _LARGEST:
        raise InvalidInput(f"{path}: is larger than 2 GiB with its external data")
    return OnnxFile(path, proto, digest.hexdigest())


class _Parts:
    """The files with external data that lie in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.read: dict[str, bytes] = {}

    def fill(self, tensor: TensorProto) -> None:
        """Put the data of a tensor into it."""
        about = {item.key: item.value for item in tensor.external_data}
        name, where = about.get("location", ""), f"the external data of {tensor.name}"
        body = self._file(name, where)
        try:
            first = int(about.get("offset") or 0)
            length = int(about.get("length") or len(body) - first)
        except ValueError:
            raise InvalidInput(f"{where} has no valid offset and length") from None
        if first < 0 or length < 0 or first + length > len(body):
            raise InvalidInput(
                f"{where} lies at {first:,} to {first + length:,}, but {name} has {len(body):,} bytes: it is cut off"
            )
        tensor.raw_data = body[first : first + length]
        del tensor.external_data[:]
        tensor.ClearField("data_location")

    def _file(self, name: str, where: str) -> bytes:
        if name not in self.read:
            path = Path(name)
            if not name or path.is_absolute() or ".." in path.parts:
                raise InvalidInput(f"{where} is said to lie in {name!r}: it must lie beside the model")
            try:
                self.read[name] = (self._folder / path).read_bytes()
            except OSError as error:
                raise InvalidInput(
                    f"{where} is in {name}, which can't be read beside it ({error.strerror}): copy both files, "
                    "or export the model as one file"
                ) from None
        return self.read[name]


def _tensors(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    """Give every tensor of a graph and of the graphs inside its nodes."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for inner in (attribute.g, *attribute.graphs) if attribute.HasField("g") else attribute.graphs:
                yield from _tensors(inner)


def check_contract(file: OnnxFile) -> tuple[int, int]:
    """Return height and width of the input; raise InvalidInput when inputs or outputs are not the contract's."""
    inputs = file.inputs()
    outputs = {item.name for item in file.proto.graph.output}
    if [item.name for item in inputs] != ["frames"] or not {"boxes", "scores", "classes"} <= outputs:
        names = ", ".join(f"{describe(item)}" for item in (*inputs, *file.proto.graph.output))
        raise InvalidInput(f"{file.path}: has the inputs and outputs {names}; {WANTED}")
    tensor = inputs[0].type.tensor_type
    shape = [dimension.dim_value for dimension in tensor.shape.dim]
    if tensor.elem_type != TensorProto.UINT8 or len(shape) != 4 or shape[3] != 3 or not all(shape[1:]):
        kind = TensorProto.DataType.Name(tensor.elem_type)
        raise InvalidInput(f"{file.path}: its input is {kind} {shape} (0 = not fixed); {WANTED}")
    if shape[0]:
        raise InvalidInput(f"{file.path}: its batch is fixed at {shape[0]}, it must be dynamic; {WANTED}")
    return shape[1], shape[2]


def describe(value: onnx.ValueInfoProto) -> str:
    """Return name, type and shape of an input or output, as a message shows them."""
    tensor = value.type.tensor_type
    shape = [dimension.dim_param or dimension.dim_value or "?" for dimension in tensor.shape.dim]
    kind = TensorProto.DataType.Name(tensor.elem_type).lower()
    return f"{value.name} {kind} [{', '.join(map(str, shape))}]"


def check_classes(file: OnnxFile, labels: int) -> None:
    """Raise InvalidInput when a frame of noise gets a class that none of so many labels is for."""
    height, width = check_contract(file)
    frame = np.random.default_rng(0).integers(0, 256, (1, height, width, 3), np.uint8)
    (classes,) = run_once(file.path, file.proto.SerializeToString(), {"frames": frame}, ["classes"])
    most = int(classes.max(initial=0))
    if most >= labels:
        raise InvalidInput(f"{file.path}: there are {labels} labels, but the model has at least {most + 1} classes")


_SAME_VALUES = {
    *("Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Transpose", "Slice", "Expand", "Tile"),
    *("Gather", "GatherND", "GatherElements"),
}
"""Nodes that give back some of the numbers of their first input."""


def count_classes(file: OnnxFile) -> int | None:
    """Return how many classes the nodes before output `classes` can tell apart; None where they don't show it."""
    graph = file.proto.graph
    made = {name: node for node in graph.node for name in node.output}
    constants = {item.name: item for item in graph.initializer}

    def constant(name: str) -> int | None:
        node = made.get(name)
        tensor = constants.get(name)
        if tensor is None and node is not None and node.op_type == "Constant":
            tensor = next((attribute.t for attribute in node.attribute if attribute.name == "value"), None)
        if tensor is None:
            return None
        value = numpy_helper.to_array(tensor)
        return int(value.reshape(-1)[0]) if value.size == 1 else None

    return _range(file.proto, "classes", made, constant)


def _range(
    proto: onnx.ModelProto, name: str, made: dict[str, onnx.NodeProto], constant: Callable[[str], int | None]
) -> int | None:
    node = made.get(name)
    while node is not None and node.op_type in _SAME_VALUES:
        name = node.input[0]
        node = made.get(name)
    match node.op_type if node is not None else "":
        case "Mod":
            return constant(made[name].input[1])
        case "Sub":  # a - a / n * n
            times = made.get(made[name].input[1])
            over = made.get(times.input[0]) if times is not None and times.op_type == "Mul" else None
            if (
                times is not None
                and over is not None
                and over.op_type == "Div"
                and over.input[0] == made[name].input[0]
            ):
                return constant(over.input[1]) if over.input[1] == times.input[1] else None
        case "ArgMax" | "TopK":
            axes = [attribute.i for attribute in made[name].attribute if attribute.name == "axis"]
            default = 0 if made[name].op_type == "ArgMax" else -1
            return _side(proto, made[name].input[0], axes[0] if axes else default)
    return None


def _side(proto: onnx.ModelProto, name: str, axis: int) -> int | None:
    """Return how large a value is along an axis; None where that is not known."""
    try:
        graph = onnx.shape_inference.infer_shapes(proto, data_prop=True).graph
    except Exception:  # its errors have no common public base; what is wrong with the graph, the engine says
        return None
    for value in (*graph.value_info, *graph.input, *graph.output):
        sides = value.type.tensor_type.shape.dim
        if value.name == name and -len(sides) <= axis < len(sides):
            return sides[axis].dim_value or None
    return None
