"""Labels of a model's classes: from a file, from the model's metadata, or COCO's."""

import ast
import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

from vaultml_common.text import counted
from vaultml_worker.darknet import read_lines
from vaultml_worker.records import InvalidInput

Labels = tuple[str, ...]


def coco() -> Labels:
    """Return the 80 COCO labels in Darknet's order."""
    return tuple(files(__package__).joinpath("data/coco.names").read_text().split("\n")[:80])


def from_file(path: Path) -> Labels:
    """Return the labels of a file, one a line; empty lines don't count. Raises InvalidInput."""
    found = tuple(line.strip() for line in read_lines(path, "labels, one a line") if line.strip())
    if not found:
        raise InvalidInput(f"{path}: has no labels: it needs one a line")
    return found


def from_metadata(path: Path, metadata: Mapping[str, str]) -> Labels | None:
    """Return the labels in the metadata of the ONNX at `path`; None when it has none. Raises InvalidInput."""
    try:
        if "vaultml.labels" in metadata:
            listed = json.loads(metadata["vaultml.labels"])
        elif "names" in metadata:  # Ultralytics writes {0: 'person', …} as Python text
            named = ast.literal_eval(metadata["names"])
            listed = [named[index] for index in range(len(named))]
        else:
            return None
        if not isinstance(listed, list) or not listed:
            raise ValueError  # noqa: TRY301 - one answer to all that is wrong
        return tuple(str(label) for label in listed)
    except (ValueError, SyntaxError, KeyError, TypeError, MemoryError, RecursionError):
        raise InvalidInput(f"{path}: the labels in its metadata can't be read: set MODEL_NAMES") from None


def settle(path: Path, found: Labels | None, classes: int | None, source: str) -> Labels:
    """Return the labels of the model at `path`: those `found` in `source`, else COCO's if there are 80 classes.

    `classes` is their number, None where it is not known. Raises InvalidInput where numbers differ, or without labels.
    """
    if found is None:
        if classes == len(coco()):
            return coco()
        count = "a number of classes that the file does not tell" if classes is None else counted(classes, "class")
        raise InvalidInput(f"{path}: has {count} and no labels: set MODEL_NAMES to a file with one label a line")
    if classes is not None and len(found) != classes:
        raise InvalidInput(
            f"{source}: has {counted(len(found), 'label')}, but the model has {counted(classes, 'class')}"
        )
    return found
