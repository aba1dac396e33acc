"""Kubernetes' binaries: those that KUBEBUILDER_ASSETS names, or built once from their Go modules and kept."""

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from testbed.cache import cache, kept

_PACKAGES = {
    "etcd": "go.etcd.io/etcd/server/v3",
    "kubectl": "k8s.io/kubernetes/cmd/kubectl",
    "kube-apiserver": "k8s.io/kubernetes/cmd/kube-apiserver",
    "kube-controller-manager": "k8s.io/kubernetes/cmd/kube-controller-manager",
    "kube-scheduler": "k8s.io/kubernetes/cmd/kube-scheduler",
}
# What setup-envtest downloads is named here by its users; it has no controller manager and no scheduler.
_ASSETS = "KUBEBUILDER_ASSETS"


@dataclass(frozen=True, kw_only=True)
class Build:
    """Commands that are built once from the go.mod and go.sum in `module`, and kept.

    `packages` by the command's name; `stamps` are set in the binaries, by the variable's full name; `name` is what the
    cache calls them.
    """

    module: Path
    packages: Mapping[str, str]
    stamps: Mapping[str, str]
    name: str

    @property
    def folder(self) -> Path:
        """Where they are once they are built: another go.mod, another folder."""
        files = [(self.module / name).read_bytes() for name in ("go.mod", "go.sum")]
        digest = hashlib.sha256(b"".join([*files, self._flags.encode()]))
        return cache() / f"{self.name}-{digest.hexdigest()[:12]}"

    def get(self) -> Path:
        """Return the folder with the commands, building them when they are not there yet.

        The build takes minutes and fetches the modules; the folder appears whole or not at all, and of two that want
        it at once one builds. Raises RuntimeError with Go's output when it fails.
        """
        folder = self.folder
        if folder.is_dir():
            return folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        with folder.with_name(f"{folder.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            return kept(folder, self._build)

    def _build(self, scratch: Path) -> Path:
        built = scratch / "bin"
        for name, package in self.packages.items():
            self.go("build", "-trimpath", "-ldflags", self._flags, "-o", str(built / name), package)
        return built

    def go(self, *arguments: str) -> str:
        """Run go in the module's folder and return what it prints. Raises RuntimeError with that when it fails."""
        go = subprocess.run(
            ["go", *arguments],
            cwd=self.module,
            env=os.environ | {"CGO_ENABLED": "0", "GOWORK": "off", "GOFLAGS": ""},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if go.returncode != 0:
            raise RuntimeError(f"go {' '.join(arguments)} failed (status {go.returncode}):\n{go.stdout}")
        return go.stdout

    @property
    def _flags(self) -> str:
        return " ".join(["-s -w", *(f"-X {name}={value}" for name, value in self.stamps.items())])


def version_in(module: Path, required: str) -> str:
    """The version of a module that a folder's go.mod requires, as in v1.36.3."""
    found = re.search(rf"^(?:require)?\s*{re.escape(required)} (v\S+)", (module / "go.mod").read_text(), re.MULTILINE)
    if found is None:
        raise RuntimeError(f"{module / 'go.mod'} requires no {required}")
    return found[1]


def available() -> str | None:
    """Return None when `binaries` can give them, else one sentence saying what is missing."""
    if _ASSETS in os.environ:
        missing = [name for name in _PACKAGES if not (Path(os.environ[_ASSETS]) / name).is_file()]
        return f"{_ASSETS} names a folder without {', '.join(missing)}." if missing else None
    if not _build().folder.is_dir() and shutil.which("go") is None:
        return "A Kubernetes cluster needs go (1.26 or newer) on the PATH, to build it the first time."
    return None


def binaries() -> Path:
    """Return the folder with etcd, kubectl and the control plane; see `Build.get` (350 MB of binaries come out)."""
    return Path(os.environ[_ASSETS]) if _ASSETS in os.environ else _build().get()


def version() -> str:
    """Kubernetes' version, as in v1.36.3."""
    return version_in(Path(__file__).parent, "k8s.io/kubernetes")


def _build() -> Build:
    major, minor, _ = version().removeprefix("v").split(".", 2)
    # Without these, the API server says that it is v0.0.0, and clients believe it.
    stamps = {"gitVersion": version(), "gitMajor": major, "gitMinor": minor}
    return Build(
        module=Path(__file__).parent,
        packages=_PACKAGES,
        stamps={f"k8s.io/component-base/version.{name}": value for name, value in stamps.items()},
        name=f"kubernetes-{version().removeprefix('v')}",
    )
