"""Whether a worker with this environment would work on this machine."""

import multiprocessing
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import av
from av.codec import Codec
from av.codec.codec import UnknownCodecError
from pebble import ProcessExpired, ProcessPool, concurrent

from vaultml_common.machine import cache_folder, cpus
from vaultml_common.redaction import MASK
from vaultml_worker import app, fetch, inference, model, self_test, settings, vault_check
from vaultml_worker.decoders import Decoders, end
from vaultml_worker.engines import onnx, tensorrt
from vaultml_worker.records import Finding, InvalidInput, State
from vaultml_worker.settings import Settings
from vaultml_worker.transport import CA_VARIABLES
from vaultml_worker.video import Limits

_SECONDS = 18.0
"""All checks run side by side for at most so long."""
_GPU_SECONDS = 15.0
_CODECS = ("h264", "hevc", "mjpeg")
_LITTLE = 1 << 30
"""Bytes of free space that some engines need."""


def examine() -> Iterator[Finding]:
    """One finding for each part, in the order in which a worker needs them; none holds a secret."""
    loaded, wrong = settings.examine()
    yield from _settings(wrong)
    named = {name for line in wrong for name in line.partition(":")[0].split(", ")}

    def left_out(name: str, *prefixes: str) -> list[Finding]:
        those = ", ".join(sorted(one for one in named if one.startswith(prefixes)))
        return [Finding(name, State.INFO, f"not looked at until the settings are right: {those}")] if those else []

    parts: dict[str, Callable[[], list[Finding]]] = {
        "engine": lambda: list(_engine(loaded)),
        "model": lambda: left_out("model", "MODEL", "DETECTION_CLASSES") or [_model(loaded)],
        "decoders": lambda: [_codecs(), _decoders(loaded)],
        "broker": lambda: (
            left_out("broker", "QUEUE_", f"{loaded.queue_system}_") or loaded.system.check(loaded.names, loaded.queue)
        ),
        "Vault": lambda: left_out("Vault", "VAULT_", *CA_VARIABLES) or [_vault(loaded)],
    }
    deadline = time.monotonic() + _SECONDS
    # Daemon threads: one that hangs, in a name server's answer say, doesn't keep the command from ending.
    started = {name: concurrent.thread(check)() for name, check in parts.items()}
    for name, future in started.items():
        try:
            found = future.result(timeout=max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            found = [Finding(name, State.WRONG, f"not known after {_SECONDS:g} s", "look whether something hangs")]
        except Exception as error:  # its text may hold anything
            found = [Finding(name, State.WRONG, f"the check failed ({type(error).__name__})", "report this as a bug")]
        for finding in found:
            yield _masked(finding, loaded.secrets)


def _settings(wrong: list[str]) -> Iterator[Finding]:
    for line in wrong:
        yield Finding("settings", State.WRONG, line, "`vaultml worker --help` lists all variables")
    if not wrong:
        count = sum(bool(os.environ.get(name)) for name, *_ in settings.variables())
        yield Finding("settings", State.OK, f"{count} variables are set")


def _masked(finding: Finding, secrets: tuple[str, ...]) -> Finding:
    """A broker's words may repeat a secret; within a word it is none, and to mask it would tell what it is."""
    found = finding.found
    for secret in secrets:
        found = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", MASK, found)
    return replace(finding, found=found)


def _engine(loaded: Settings) -> Iterator[Finding]:
    """The GPU, which is only information where the network runs on the CPU; onnxruntime; the engine cache."""
    found, complete = _gpu()
    on_gpu = loaded.engine == "tensorrt" or (loaded.engine == "auto" and complete)
    for finding in found:
        yield finding if on_gpu or finding.state is State.OK else replace(finding, state=State.INFO)
    if loaded.engine != "tensorrt":
        runs = "not needed: the network runs on the GPU" if on_gpu else "the network runs on the CPU"
        yield Finding("onnxruntime", State.OK, f"{onnx.version()}, CPUs: {cpus()}; {runs}")
    if on_gpu:
        yield _cache(loaded.engine_cache or cache_folder() / "engines")


def _gpu() -> tuple[list[Finding], bool]:
    pool = ProcessPool(max_workers=1, context=multiprocessing.get_context("forkserver"))
    try:
        found: tuple[list[Finding], bool] = pool.schedule(tensorrt.check, timeout=_GPU_SECONDS).result()
    except TimeoutError:
        said = f"the driver, pycuda or TensorRT gave no answer within {_GPU_SECONDS:g} s"
    except ProcessExpired as error:
        said = f"the driver, pycuda or TensorRT ended the process that loaded them (exit code {error.exitcode})"
    else:
        return found
    finally:
        end(pool)
    return [Finding("GPU", State.WRONG, said, "look at nvidia-smi and the kernel's log")], True


def _cache(folder: Path) -> Finding:
    if (trouble := _unwritable(folder)) is not None:
        found = f"{folder} can't be written to ({trouble}): an engine is built at every start"
        return Finding("engine cache", State.WARNING, found, "set ENGINE_CACHE to a folder that keeps it")
    free = shutil.disk_usage(_existing(folder)).free
    count = len(list(folder.glob("*.engine")))
    found = f"{folder}: engines: {count}, free: {free >> 20:,} MiB"
    if free < _LITTLE:
        return Finding("engine cache", State.WARNING, found, "make room, or set ENGINE_CACHE to another folder")
    return Finding("engine cache", State.OK, found)


def _unwritable(folder: Path) -> str | None:
    """Why nothing could be kept in a folder that is there or would be made; None when it could."""
    try:
        with tempfile.TemporaryFile(dir=_existing(folder)):
            return None
    except OSError as error:
        return error.strerror or type(error).__name__


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


def _model(loaded: Settings) -> Finding:
    """The model, loaded where it is here; nothing is fetched."""
    own = model.baked_in() if loaded.model is None else None
    into = loaded.engine_cache if loaded.model else None
    given = loaded.model or model.DEFAULT
    if own is None and (absent := fetch.missing(given, loaded.model_sha256, into)) is not None:
        source, folder = absent
        if (trouble := _unwritable(folder)) is not None:
            found = f"{given} is not here, and what is fetched can't be kept in {folder} ({trouble})"
            return Finding("model", State.WRONG, found, "set ENGINE_CACHE or VAULTML_CACHE to a folder for it")
        return Finding("model", State.INFO, f"{given} is not here: the first start fetches {source}, into {folder}")
    try:
        loaded_model = inference.load(app.model_choice(loaded))
    except InvalidInput as error:
        return Finding("model", State.WRONG, str(error), "docs/models.md says what a model must be")
    for warning in loaded_model.warnings:
        return Finding("model", State.WARNING, warning)
    ready = loaded_model.model
    size = f"{ready.width}x{ready.height}, {len(ready.labels)} classes"
    return Finding("model", State.OK, f"{ready.name}, sha256 {ready.sha256[:12]}…, {size}")


def _codecs() -> Finding:
    here, missing = [], []
    for name in _CODECS:
        try:
            here.append(Codec(name, "r").name)
        except UnknownCodecError:
            missing.append(name)
    library = f"PyAV {av.__version__}, FFmpeg {av.ffmpeg_version_info}"
    if missing:
        advice = "install PyAV's own wheel (pip install --force-reinstall av), which has them"
        return Finding("codecs", State.WRONG, f"{library}: no decoder for {', '.join(missing)}", advice)
    return Finding("codecs", State.OK, f"{library}: {', '.join(here)}")


def _decoders(loaded: Settings) -> Finding:
    """Decode a clip as a worker does: in a child process, under its limits."""
    limits = Limits(loaded.recording_max_pixels, loaded.recording_max_frames)
    with closing(
        Decoders(processes=1, seconds=loaded.decoder_seconds, memory=loaded.decoder_bytes, limits=limits)
    ) as decoders:
        failure = self_test.decode(decoders, loaded.recording_max_pixels)
    if failure is not None:
        advice = f"look at {self_test.LIMITS} and the container's memory limit"
        return Finding("decoders", State.WRONG, f"a clip could not be decoded: {failure.message}", advice)
    return Finding("decoders", State.OK, "a child process decoded a clip")


def _vault(loaded: Settings) -> Finding:
    if loaded.vault is None:
        return Finding("Vault", State.INFO, "none is set: every event must bring its own")
    with closing(loaded.transport()) as transport:
        return vault_check.check(loaded.vault, transport)
