"""Models as users give them: a Darknet pair or an ONNX file, made ready for any engine."""

import ast
import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

import onnx

from vaultml_worker import darknet, fetch, onnx_graph
from vaultml_worker.records import InvalidInput, Model

DEFAULT = "yolov3-tiny"
# Where an image may carry its own model, with model.weights and model.names beside it.
_BAKED_IN = (Path("/opt/vaultml/model/model.cfg"), Path("/opt/vaultml/model/model.onnx"))


def load(
    path: Path | None = None,
    weights: Path | None = None,
    names: Path | None = None,
    precision: onnx_graph.Precision | None = None,
    sha256: str | None = None,
) -> Model:
    """The model at `path` (.cfg or .onnx); None: the image's own, else YOLOv3-tiny, fetched once.

    `precision` is that of a Darknet network's convolutions (None: fp32); an ONNX has its own. `sha256`, if given, is
    what the weights' or the ONNX file's must be. Raises InvalidInput that says what is wrong and what to give instead.
    """
    loaded = _load(path, weights, names, precision)
    if sha256 is not None and loaded.sha256 != sha256:
        raise InvalidInput(f"model {loaded.name}: its sha256 is {loaded.sha256}, not {sha256} as MODEL_SHA256 asks")
    return loaded


def _load(path: Path | None, weights: Path | None, names: Path | None, precision: onnx_graph.Precision | None) -> Model:
    if path is None:
        path, weights, names = _default(weights, names)
    names = names or _beside(path, ".names")
    match path.suffix.lower():
        case ".cfg":
            return _from_darknet(path, weights or _beside(path, ".weights"), names, precision or "fp32")
        case ".onnx":
            if precision is not None:
                raise InvalidInput(f"{path}: an .onnx has its own precision: leave MODEL_PRECISION at auto")
            return _from_onnx(path, names)
    raise InvalidInput(f"{path}: a model is a Darknet .cfg (with its .weights) or an .onnx")


def has_precision(path: Path | None) -> bool:
    """Whether the precision of the model at `path` (None: the default) can be chosen, which a Darknet network's can."""
    return (path or baked_in() or Path("default.cfg")).suffix.lower() == ".cfg"


def baked_in() -> Path | None:
    """The image's own model, where there is one."""
    # In our own images it is a link: the model goes by the name of what it points at.
    return next((path.resolve() for path in _BAKED_IN if path.is_file()), None)


def check_labels(model: Model, wanted: Sequence[str]) -> None:
    """Raise InvalidInput when the model doesn't know one of the labels."""
    if unknown := set(wanted) - set(model.labels):
        raise InvalidInput(f"DETECTION_CLASSES: the model has no label {', '.join(sorted(unknown))}")


def coco() -> tuple[str, ...]:
    """The 80 COCO labels in Darknet's order."""
    return tuple(files(__package__).joinpath("data/coco.names").read_text().split("\n")[:80])


def _default(weights: Path | None, names: Path | None) -> tuple[Path, Path | None, Path | None]:
    if (own := baked_in()) is not None:
        return own, weights, names
    try:
        tiny = fetch.model(DEFAULT)
    except InvalidInput as error:
        raise InvalidInput(f"no model: set MODEL to a .cfg or .onnx; the default could not be had: {error}") from None
    return tiny / f"{DEFAULT}.cfg", weights, names


def _beside(path: Path, suffix: str) -> Path | None:
    other = path.with_suffix(suffix)
    return other if other.is_file() else None


def _from_darknet(cfg: Path, weights: Path | None, names: Path | None, precision: onnx_graph.Precision) -> Model:
    network = darknet.read_cfg(cfg)
    if weights is None:
        raise InvalidInput(f"{cfg}: its weights are missing: set MODEL_WEIGHTS, or put {cfg.stem}.weights beside it")
    labels = _labels(names, network.classes)
    convolutions, digest = darknet.read_weights(network, weights)
    graph = onnx_graph.build(network, convolutions, labels, precision)
    return Model(network.name, digest, graph, network.width, network.height, labels, darknet.layer_table(network))


def warnings(model: Model, path: Path | None) -> Sequence[str]:
    """What the user should know of a model that is usable but odd."""
    if path is None or path.suffix.lower() != ".cfg" or model.sha256 != fetch.TINY_WEIGHTS:
        return ()
    if any(head.mask == (0, 1, 2) for head in darknet.read_cfg(path).heads):
        return (
            f"{path} says mask = 0,1,2 in its second [yolo], but these YOLOv3-tiny weights were trained with 1,2,3: "
            "small objects get boxes of half their size; change that line, or leave MODEL empty",
        )
    return ()


def _labels(names: Path | None, classes: int) -> tuple[str, ...]:
    if names is None:
        if classes != 80:
            raise InvalidInput(f"the model has {classes} classes: set MODEL_NAMES to a file with one label a line")
        return coco()
    try:
        labels = tuple(line.strip() for line in names.read_text().splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{names}: can't be read as labels, one a line ({type(error).__name__})") from None
    if len(labels) != classes:
        raise InvalidInput(f"{names}: has {len(labels)} labels, but the model has {classes} classes")
    return labels


def _from_onnx(path: Path, names: Path | None) -> Model:
    try:
        body = path.read_bytes()
        proto = onnx.load_model_from_string(body)
    except OSError as error:
        raise InvalidInput(f"{path}: can't be read ({error.strerror})") from None
    except Exception:  # protobuf's DecodeError has no public home
        raise InvalidInput(f"{path}: is not an ONNX file") from None
    height, width = _check_contract(path, proto.graph)
    metadata = {item.key: item.value for item in proto.metadata_props}
    labels = _onnx_labels(path, metadata, names)
    return Model(path.stem, hashlib.sha256(body).hexdigest(), body, width, height, labels)


def _check_contract(path: Path, graph: onnx.GraphProto) -> tuple[int, int]:
    """Height and width of the input; InvalidInput when inputs or outputs are not the contract's."""
    constants = {item.name for item in graph.initializer}
    inputs = [item for item in graph.input if item.name not in constants]
    outputs = {item.name for item in graph.output}
    wanted = "see docs/models.md: input frames uint8 [batch, height, width, 3], outputs boxes, scores, classes"
    if [item.name for item in inputs] != ["frames"] or not {"boxes", "scores", "classes"} <= outputs:
        raise InvalidInput(f"{path}: has inputs {[i.name for i in inputs]} and outputs {sorted(outputs)}; {wanted}")
    tensor = inputs[0].type.tensor_type
    shape = [dimension.dim_value for dimension in tensor.shape.dim]
    if tensor.elem_type != onnx.TensorProto.UINT8 or len(shape) != 4 or shape[3] != 3 or not all(shape[1:]):
        kind = onnx.TensorProto.DataType.Name(tensor.elem_type)
        raise InvalidInput(f"{path}: its input is {kind} {shape} (0 = not fixed); {wanted}")
    if shape[0]:
        raise InvalidInput(f"{path}: its batch is fixed at {shape[0]}, it must be dynamic; {wanted}")
    return shape[1], shape[2]


def _onnx_labels(path: Path, metadata: Mapping[str, str], names: Path | None) -> tuple[str, ...]:
    if names is not None:
        return tuple(line.strip() for line in names.read_text().splitlines() if line.strip())
    try:
        if "vaultml.labels" in metadata:
            return tuple(str(label) for label in json.loads(metadata["vaultml.labels"]))
        if "names" in metadata:  # Ultralytics writes {0: 'person', …} as Python text
            found = ast.literal_eval(metadata["names"])
            return tuple(str(found[index]) for index in range(len(found)))
    except (ValueError, SyntaxError, KeyError, TypeError):
        raise InvalidInput(f"{path}: the labels in its metadata can't be read: set MODEL_NAMES") from None
    return coco()
