"""Kubernetes' binaries: those that KUBEBUILDER_ASSETS names, or built once from their Go modules and kept."""

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from testbed.process import cache

_HERE = Path(__file__).parent
_MODULE = (_HERE / "go.mod", _HERE / "go.sum")
_PACKAGES = {
    "etcd": "go.etcd.io/etcd/server/v3",
    "kubectl": "k8s.io/kubernetes/cmd/kubectl",
    "kube-apiserver": "k8s.io/kubernetes/cmd/kube-apiserver",
    "kube-controller-manager": "k8s.io/kubernetes/cmd/kube-controller-manager",
    "kube-scheduler": "k8s.io/kubernetes/cmd/kube-scheduler",
}
# What setup-envtest downloads is named here by its users; it has no controller manager and no scheduler.
_ASSETS = "KUBEBUILDER_ASSETS"


def available() -> str | None:
    """Return None when `binaries` can give them, else one sentence saying what is missing."""
    if _ASSETS in os.environ:
        missing = [name for name in _PACKAGES if not (Path(os.environ[_ASSETS]) / name).is_file()]
        return f"{_ASSETS} names a folder without {', '.join(missing)}." if missing else None
    if not _cache().is_dir() and shutil.which("go") is None:
        return "A Kubernetes cluster needs go (1.26 or newer) on the PATH, to build it the first time."
    return None


def binaries() -> Path:
    """Return the folder with etcd, kubectl and the control plane, building them when they are not there yet.

    The build takes minutes (and fetches the modules, 350 MB of binaries come out); the folder appears whole or not at
    all, and of two that want it at once one builds. Raises RuntimeError with Go's output when it fails.
    """
    if _ASSETS in os.environ:
        return Path(os.environ[_ASSETS])
    folder = _cache()
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():  # else another process has built it meanwhile
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix="build-") as scratch:
                built = Path(scratch) / "bin"
                for name, package in _PACKAGES.items():
                    _build(package, built / name)
                built.rename(folder)
    return folder


def version() -> str:
    """Kubernetes' version, as in v1.36.3."""
    found = re.search(r"^\s*k8s\.io/kubernetes (v\S+)", _MODULE[0].read_text(), re.MULTILINE)
    if found is None:
        raise RuntimeError(f"{_MODULE[0]} requires no k8s.io/kubernetes")
    return found[1]


def _build(package: str, target: Path) -> None:
    go = subprocess.run(
        ["go", "build", "-trimpath", "-ldflags", _flags(), "-o", target, package],
        cwd=_HERE,
        env=os.environ | {"CGO_ENABLED": "0", "GOWORK": "off", "GOFLAGS": ""},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if go.returncode != 0:
        raise RuntimeError(f"go could not build {package} (status {go.returncode}):\n{go.stdout}")


def _flags() -> str:
    """Without these, the API server says that it is v0.0.0, and clients believe it."""
    major, minor, _ = version().removeprefix("v").split(".", 2)
    stamps = {"gitVersion": version(), "gitMajor": major, "gitMinor": minor}
    return " ".join(["-s -w", *(f"-X k8s.io/component-base/version.{name}={value}" for name, value in stamps.items())])


def _cache() -> Path:
    digest = hashlib.sha256(b"".join([*(path.read_bytes() for path in _MODULE), _flags().encode()]))
    return cache() / f"kubernetes-{version().removeprefix('v')}-{digest.hexdigest()[:12]}"
