"""Models as users give them: a Darknet pair or an ONNX file, made ready for any engine."""

from collections.abc import Sequence
from pathlib import Path

from vaultml_worker import darknet, fetch, onnx_file, onnx_graph, onnx_yolo
from vaultml_worker import labels as labels_
from vaultml_worker.labels import coco
from vaultml_worker.records import InvalidInput, Model

__all__ = ["DEFAULT", "baked_in", "check_labels", "coco", "has_precision", "load", "warnings"]

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
    """Load the model at `path` (.cfg or .onnx); None: the image's own, else YOLOv3-tiny, fetched once.

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
    """True if the precision of the model at `path` (None: the default) can be chosen, as a Darknet network's can."""
    return (path or baked_in() or Path("default.cfg")).suffix.lower() == ".cfg"


def baked_in() -> Path | None:
    """Return the image's own model, None where there is none."""
    # In our own images it is a link: the model goes by the name of what it points at.
    return next((path.resolve() for path in _BAKED_IN if _is_file(path)), None)


def check_labels(model: Model, wanted: Sequence[str]) -> None:
    """Raise InvalidInput when the model doesn't know one of the labels."""
    if unknown := set(wanted) - set(model.labels):
        raise InvalidInput(f"DETECTION_CLASSES: the model has no label {', '.join(sorted(unknown))}")


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
    return other if _is_file(other) else None


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a folder that may not be looked into: reading the model itself says so
        return False


def _from_darknet(cfg: Path, weights: Path | None, names: Path | None, precision: onnx_graph.Precision) -> Model:
    network = darknet.read_cfg(cfg)
    if weights is None:
        raise InvalidInput(f"{cfg}: its weights are missing: set MODEL_WEIGHTS, or put {cfg.stem}.weights beside it")
    found = labels_.from_file(names) if names else None
    labels = labels_.settle(cfg, found, network.classes, str(names))
    convolutions, digest = darknet.read_weights(network, weights)
    graph = onnx_graph.build(network, convolutions, labels, precision)
    return Model(network.name, digest, graph, network.width, network.height, labels, darknet.layer_table(network))


def warnings(model: Model, path: Path | None) -> Sequence[str]:
    """Return what the user should know of a model that is usable but odd."""
    if path is None or path.suffix.lower() != ".cfg":
        return ()
    network = darknet.read_cfg(path)
    found = [f"{path}, {sentence}" for sentence in network.ignored]
    if model.sha256 == fetch.TINY_WEIGHTS and any(head.mask == (0, 1, 2) for head in network.heads):
        found.append(
            f"{path} says mask = 0,1,2 in its second [yolo], but these YOLOv3-tiny weights were trained with 1,2,3: "
            "small objects get boxes of half their size; change that line, or leave MODEL empty"
        )
    return found


def _from_onnx(path: Path, names: Path | None) -> Model:
    file, classes = onnx_file.read(path), None
    if onnx_yolo.is_detector(file):
        file, classes = onnx_yolo.adapt(file)
        height, width = onnx_file.check_contract(file)
    else:
        height, width = onnx_file.check_contract(file)
        classes = onnx_file.count_classes(file)
    found = labels_.from_file(names) if names else labels_.from_metadata(path, file.metadata)
    labels = labels_.settle(path, found, classes, str(names or path))
    if classes is None:
        onnx_file.check_classes(file, len(labels))
    return Model(path.stem, file.sha256, file.proto.SerializeToString(), width, height, labels)
