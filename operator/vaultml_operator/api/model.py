"""The network that looks at the frames, and what it reports."""

from typing import Annotated, Literal

from pydantic import Field

from vaultml_operator.api.base import SET_LIST, Model, ObjectName, Rule, trimmed_rule, url_rules


class Claim(Model):
    """A PersistentVolumeClaim of the pipeline's namespace."""

    claim_name: ObjectName = Field(description="Name of the PersistentVolumeClaim.")


ModelPath = Annotated[str, Field(min_length=1, max_length=1024)]


_PATHS = "[has(self.path) ? self.path : '', has(self.weights) ? self.weights : '', has(self.names) ? self.names : '']"


class NeuralNetwork(Model):
    """The network that looks at the frames."""

    rules = (
        Rule(
            "[has(self.name), has(self.path), has(self.url)].filter(x, x).size() <= 1",
            "give one of name (a published model), path (a file) and url, or none for the image's own model",
        ),
        *url_rules(
            "url",
            "be http(s) and end in .cfg (with .weights beside it) or .onnx, without user, password, query or fragment",
            optional=True,
            suffix="[.](cfg|onnx)",
        ),
        Rule(
            "!has(self.url) || has(self.sha256)",
            "url needs sha256: the digest of the .onnx, or of the .weights beside a .cfg",
        ),
        Rule(
            "!has(self.sha256) || has(self.path) || has(self.url)",
            "sha256 belongs to path or url: a published model is checked by its own digest",
        ),
        Rule(
            "!has(self.precision) || ![has(self.path) ? self.path : '', has(self.url) ? self.url : '']"
            ".exists(p, p.endsWith('.onnx'))",
            "an .onnx has its own precision: leave precision out",
        ),
        Rule(
            "!has(self.path) || self.path.endsWith('.cfg') || self.path.endsWith('.onnx')",
            "path must end in .cfg (Darknet, with its .weights) or .onnx",
        ),
        Rule(
            "has(self.path) || (!has(self.weights) && !has(self.names))",
            "weights and names belong to a path: give path, too",
        ),
        Rule(
            "has(self.path) || !has(self.persistentVolumeClaim)",
            "persistentVolumeClaim needs path: the model's file in it",
        ),
        Rule(
            "!has(self.path) || !self.path.endsWith('.onnx') || !has(self.weights)",
            "an .onnx carries its weights: leave weights out",
        ),
        Rule(
            f"{_PATHS}.all(p, p == '' || p.startsWith('/') != has(self.persistentVolumeClaim))",
            "paths are relative with persistentVolumeClaim (to its top), and absolute without (in the image)",
        ),
        Rule(
            f"{_PATHS}.all(p, !('..' in p.split('/')))",
            "paths must not contain ..",
        ),
        trimmed_rule(f"{_PATHS}.all(t, {{}})", "path, weights and names"),
    )
    name: Literal["yolov3", "yolov3-tiny"] | None = Field(
        default=None,
        description="A published model. Where the image lacks it the worker fetches it, which needs the internet.",
    )
    path: ModelPath | None = Field(
        default=None,
        description="A Darknet .cfg or an .onnx, in the claim or in the image. Without path, name and url: the model "
        "of the image.",
    )
    url: Annotated[str, Field(min_length=1, max_length=2048)] | None = Field(
        default=None,
        description="Where the worker fetches a .cfg (with .weights and, if there are any, .names beside it) or an "
        ".onnx from, over http(s). It is kept in the engine cache.",
    )
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = Field(
        default=None,
        description="SHA-256 of the .onnx or the weights, in small hexadecimal digits; another file is refused.",
    )
    precision: Literal["fp32", "fp16"] | None = Field(
        default=None,
        description="Precision of a Darknet network's convolutions. Absent: the engine's best; fp16 with tensorrt.",
    )
    weights: ModelPath | None = Field(
        default=None, description="Darknet weights. Absent: the file beside the .cfg that ends in .weights."
    )
    names: ModelPath | None = Field(
        default=None,
        description="Labels, one a line. Absent: the file beside the model that ends in .names, else COCO's.",
    )
    persistent_volume_claim: Claim | None = Field(
        default=None, description="Volume with the model's files, mounted read-only."
    )
    engine_cache: Claim | None = Field(
        default=None,
        description="Volume that keeps built engines between starts. Absent: they live as long as the pod.",
    )


class Detection(Model):
    """What is looked at and reported."""

    rules = (
        Rule(
            "self.classes.all(c, c.matches('^[^,]+$'))",
            "a class is one label, without commas: give a list, e.g. [car, person]",
        ),
        trimmed_rule("self.classes.all(t, {})", "a class"),
    )
    number_of_predictions: int = Field(
        default=5, ge=1, le=1000, description="Frames looked at per recording, spread evenly over its duration."
    )
    threshold: float = Field(default=0.5, gt=0, lt=1, description="Least probability of a detection.")
    classes: Annotated[tuple[Annotated[str, Field(min_length=1, max_length=128)], ...], Field(max_length=256)] = Field(
        default=(), description="Labels to report; empty: all that the model knows.", json_schema_extra=SET_LIST
    )
    move_distance: float = Field(
        default=0,
        ge=0,
        le=1_000_000,
        description="Pixels that an object's box centre must travel to count as moving; 0: everything counts.",
    )
