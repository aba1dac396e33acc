"""This project's images, built and laid out without a container engine: by Debian's debootstrap and buildah.

Everything is kept below the cache folder: the base, what pip fetched, and the last image built of each Dockerfile,
which is built anew only when something that goes into it has changed.
"""

import fcntl
import functools
import hashlib
import itertools
import json
import os
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from testbed.cache import cache
from testbed.kubernetes import Image

_CHECKOUT = Path(__file__).parents[1]
_TOOLS = ("buildah", "debootstrap")
_BASE_PACKAGES = "ca-certificates,python3,python3-venv"
_CERTIFICATES = Path("/etc/ssl/certs")
_OURS = "vaultml-"
"""How the names of laid out images begin; the process id comes next."""
_numbers = itertools.count()


def available() -> str | None:
    """Return None when images can be built here, else one sentence saying what is missing."""
    missing = [name for name in _TOOLS if shutil.which(name) is None]
    if missing:
        return f"Images need {' and '.join(missing)} on the PATH: Debian has packages of that name."
    return None if os.geteuid() == 0 else "Images are built with root's rights only."


@dataclass(frozen=True, slots=True)
class Built:
    """An image in buildah's storage."""

    reference: str
    config: Mapping[str, Any]
    """As in `docker inspect`: User, Env, Entrypoint, Cmd, Labels, Healthcheck, …"""
    seconds: float
    """What building it took; 0: it was there."""


@dataclass(frozen=True, slots=True)
class Container:
    """An image's files, laid out."""

    built: Built
    name: str
    root: Path

    def run(self, *command: str) -> str:
        """What a command prints in it, run as the image's user. Raises RuntimeError when it fails."""
        return _buildah("run", "--isolation", "chroot", "--network", "host", self.name, "--", *command)

    def image(self) -> Image:
        """The image for the nodes of a test cluster."""
        config = self.built.config
        return Image(
            entrypoint=tuple(config.get("Entrypoint") or ()),
            command=tuple(config.get("Cmd") or ()),
            env=dict(line.split("=", 1) for line in config["Env"]),
            working_folder=config.get("WorkingDir") or "/",
            root=str(self.root),
            user=int(config["User"].partition(":")[0]),
        )

    def bytes(self) -> int:
        """Size of all its files."""
        return sum((Path(folder) / name).lstat().st_size for folder, _, names in os.walk(self.root) for name in names)


def worker() -> Built:
    """The worker for CPUs."""
    return _build("worker", {"FLAVOUR": "cpu"})


def operator() -> Built:
    """The operator."""
    return _build("operator", {})


@contextmanager
def unpacked(built: Built) -> Iterator[Container]:
    """An image's files, until the end of the block."""
    with _alone():
        _remove_left()
        name = _buildah(
            "from", "--pull-never", "--name", f"{_OURS}{os.getpid()}-{next(_numbers)}", built.reference
        ).strip()
    try:
        yield Container(built, name, Path(_buildah("mount", name).strip()))
    finally:
        _buildah("rm", name)


def _remove_left() -> None:
    """Remove what builds leave behind, and what a process laid out that was killed."""
    for name in _buildah("containers", "--format", "{{.ContainerName}}").split():
        owner = name.removeprefix(_OURS).partition("-")[0]
        if not (name.startswith(_OURS) and Path("/proc", owner).exists()):
            _buildah("rm", name)
    for image in _buildah("images", "--filter", "dangling=true", "--quiet").split():
        _buildah("rmi", image)


def base() -> str:
    """The image that the others are built on, made once: a minimal Debian with Python. Gives its reference."""
    with _alone():
        return _base()


def _base() -> str:
    suite = platform.freedesktop_os_release()["VERSION_CODENAME"]
    reference = f"localhost/vaultml-base:{suite}"
    if _is_there(reference):
        return reference
    with tempfile.TemporaryDirectory(dir=_folder(), prefix="base-") as scratch:
        root = Path(scratch) / "root"
        _run("debootstrap", "--variant=minbase", f"--include={_BASE_PACKAGES}", suite, str(root))
        for left in ("var/cache/apt", "var/lib/apt/lists", "var/log"):
            shutil.rmtree(root / left)
            (root / left).mkdir()
        container = _buildah("from", "scratch").strip()
        try:
            _buildah("add", "--quiet", container, str(root), "/")
            _buildah("commit", "--quiet", container, reference)
        finally:
            _buildah("rm", container)
    return reference


def _build(name: str, arguments: Mapping[str, str]) -> Built:
    dockerfile = _CHECKOUT / f"Dockerfile.{name}"
    with _alone():
        arguments = {"PYTHON": _base(), **arguments}
        repository = f"localhost/vaultml-{name}"
        reference = f"{repository}:{_digest(dockerfile, arguments)}"
        begun = time.monotonic()
        made = not _is_there(reference)
        if made:
            for older in _images(repository):
                _buildah("rmi", "--force", older)
            _buildah(
                "build",
                *("--quiet", "--isolation", "chroot", "--network", "host", "--format", "docker", "--pull-never"),
                *(word for item in arguments.items() for word in ("--build-arg", "=".join(item))),
                *(word for item in _volumes() for word in ("--volume", f"{item[0]}:{item[1]}:ro")),
                *("--file", str(dockerfile), "--tag", reference, str(_CHECKOUT)),
            )
            _remove_left()
        seconds = time.monotonic() - begun if made else 0.0
        found = json.loads(_buildah("inspect", "--type", "image", reference))
    return Built(reference, found["Docker"]["config"], seconds)


def _volumes() -> Iterator[tuple[Path, str]]:
    """What lets pip reach its index from inside as from here: the machine's certificates and pip's settings."""
    settings = _folder() / "pip.conf"
    lines = ["[global]", "disable-pip-version-check = true", "root-user-action = ignore"]
    if _CERTIFICATES.is_dir():
        lines.append(f"cert = {_CERTIFICATES}/ca-certificates.crt")
        yield _CERTIFICATES, str(_CERTIFICATES)
    if index := os.environ.get("PIP_INDEX_URL"):
        lines.append(f"index-url = {index}")
    settings.write_text("\n".join(lines) + "\n")
    yield settings, "/etc/pip.conf"


def _digest(dockerfile: Path, arguments: Mapping[str, str]) -> str:
    """Of everything that goes into an image."""
    ignore = _CHECKOUT / ".dockerignore"
    context = [_CHECKOUT / line[1:] for line in ignore.read_text().splitlines() if line.startswith("!")]
    files = [file for entry in context for file in ([entry] if entry.is_file() else sorted(entry.rglob("*")))]
    digest = hashlib.sha256(json.dumps(dict(arguments)).encode())
    for file in (dockerfile, ignore, *files):
        if file.is_file() and "__pycache__" not in file.parts:
            digest.update(f"{file.relative_to(_CHECKOUT)} {file.stat().st_mode} ".encode())
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:16]


def _is_there(reference: str) -> bool:
    return reference in _images(reference)


def _images(repository: str) -> list[str]:
    found = _buildah("images", "--format", "{{.Name}}:{{.Tag}}").split()
    return [each for each in found if each == repository or each.startswith(f"{repository}:")]


@contextmanager
def _alone() -> Iterator[None]:
    """Of two that build at once, one waits and then finds what the other has built."""
    with (_folder() / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _folder() -> Path:
    folder = cache() / "images"
    (folder / "tmp").mkdir(parents=True, exist_ok=True)
    return folder


def _buildah(command: str, *arguments: str) -> str:
    return _run("buildah", *_storage(_driver()), command, *arguments, TMPDIR=str(_folder() / "tmp"))


@functools.cache
def _driver() -> str:
    """Of overlay, which takes a third of the time, and vfs, which copies each layer but works everywhere."""
    try:
        _run("buildah", *_storage("overlay"), "info")
    except RuntimeError:
        return "vfs"
    return "overlay"


def _storage(driver: str) -> Sequence[str]:
    """A place of our own, so that what others keep on this machine is neither used nor touched."""
    folder = _folder()
    return ("--root", f"{folder}/{driver}", "--runroot", f"{folder}/run-{driver}", "--storage-driver", driver)


def _run(*command: str, **variables: str) -> str:
    done = subprocess.run(
        command,
        env={name: os.environ[name] for name in _passed() if name in os.environ} | variables,
        cwd="/",
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        said = "\n".join((done.stdout + done.stderr).splitlines()[-40:])
        raise RuntimeError(f"{' '.join(command)} failed (status {done.returncode}):\n{said}")
    return done.stdout


def _passed() -> Sequence[str]:
    proxies = ("http_proxy", "https_proxy", "no_proxy")
    return ("PATH", "HOME", "LANG", *proxies, *(name.upper() for name in proxies))
