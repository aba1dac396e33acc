"""Model and engine, ready to use: the one place that prepares them, for the worker and for every command."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from vaultml_common.machine import cache_folder
from vaultml_worker import engines, fetch, model
from vaultml_worker.engines import Engine, Options
from vaultml_worker.onnx_graph import Precision
from vaultml_worker.records import Model


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """The model that a user asks for.

    `given` is a file, a URL or a published name (None: the image's own, else YOLOv3-tiny); `precision` is that of a
    Darknet network (None: what suits the engine best); `folder` keeps what is fetched and what is built (None: the
    user's cache); `labels` must be known to the model.
    """

    given: str | None = None
    weights: Path | None = None
    names: Path | None = None
    sha256: str | None = None
    precision: Precision | None = None
    folder: Path | None = None
    labels: tuple[str, ...] = ()

    @property
    def engine_cache(self) -> Path:
        """Where engines are kept."""
        return self.folder or cache_folder() / "engines"


@dataclass(frozen=True, slots=True)
class Inference:
    """A model on an engine. `cpu_reason` says why it is not on a GPU, where nobody asked for the CPU."""

    model: Model
    engine: Engine
    cpu_reason: str | None = None


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model, with what the user should know of it."""

    model: Model
    warnings: Sequence[str]


def load(choice: ModelChoice, engine: str | None = None) -> LoadedModel:
    """Fetch a model where that is needed, and load it as suits the engine of that name (None: as it is).

    Raises InvalidInput with one sentence that says what is wrong with which file.
    """
    # What is fetched is kept with the engines: in a pod, the image's own cache can't be written to.
    path = fetch.locate(choice.given, choice.sha256, choice.folder) if choice.given is not None else None
    precision = choice.precision
    if precision is None and engine is not None and model.has_precision(path):
        precision = engines.precision(engine)
    loaded = model.load(path, choice.weights, choice.names, precision, choice.sha256)
    model.check_labels(loaded, choice.labels)
    return LoadedModel(loaded, model.warnings(loaded, path))


@contextmanager
def ready(choice: ModelChoice, engine: str = "auto", options: Options | None = None) -> Iterator[Inference]:
    """Load a model and start an engine with it; the engine ends with the block. Warnings go to the options' observer.

    Raises InvalidInput for what the user can mend, EngineError for an engine that can't start, EngineStopped.
    """
    name, cpu_reason = engines.choose(engine)
    loaded = load(choice, name)
    options = options or Options()
    for warning in loaded.warnings:
        options.observer.warning(warning)
    if options.cache is None:
        options = replace(options, cache=choice.engine_cache)
    started = engines.create(name, loaded.model, options)
    try:
        yield Inference(loaded.model, started, cpu_reason)
    finally:
        started.close()
