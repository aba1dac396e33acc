"""The real pycuda, compiled once with NVIDIA's compiler from the package registry, and kept in the cache."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from testbed.cache import cache, kept
from testbed.gpu.pip import pip

_LOCK = Path(__file__).parents[2] / "requirements" / "testbed-pycuda.txt"
# Nothing of pycuda's that we use needs it, and it would want a library that is not there.
_SITECONF = "CUDA_ENABLE_CURAND = False\n"
# Linked to the driver though the one it is linked against here is empty: else it would not look for one at run time.
_LINKER = "-Wl,--no-as-needed"


def available() -> str | None:
    """Return None when pycuda is here or can be compiled, else one sentence that says what is missing."""
    if _folder().is_dir():
        return None
    for tool in ("cc", "c++", "nm"):
        if shutil.which(tool) is None:
            return f"The real pycuda needs a C++ compiler and binutils to be compiled once: no {tool} on the PATH."
    return None


def installed() -> Path:
    """The folder to put on the path for `import pycuda`, compiling it (two minutes) when it is not there yet.

    Raises RuntimeError with the compiler's words.
    """
    return kept(_folder(), _compile)


def library() -> Path:
    """The shared library of pycuda, which links to the driver."""
    (found,) = (installed() / "pycuda").glob("_driver*.so")
    return found


def _folder() -> Path:
    python = f"cp{sys.version_info[0]}{sys.version_info[1]}"
    recipe = _LOCK.read_bytes() + _SITECONF.encode() + _LINKER.encode()
    return cache() / f"pycuda-{python}-{hashlib.sha256(recipe).hexdigest()[:16]}"


def _compile(scratch: Path) -> Path:
    """Install the locked compiler and pycuda's other dependencies, then pycuda itself without them."""
    tools, made, links = scratch / "tools", scratch / "pycuda", scratch / "links"
    packages = re.split(r"\n(?=\S)", _LOCK.read_text())
    (scratch / "pycuda.txt").write_text("\n".join(one for one in packages if one.startswith("pycuda==")))
    (scratch / "others.txt").write_text("\n".join(one for one in packages if not one.startswith("pycuda==")))
    pip("install", "--target", str(tools), "-r", str(scratch / "others.txt"))
    root = _cuda_root(tools)
    links.mkdir()
    _link(root, links)
    pip(
        "download",
        "--no-binary",
        "pycuda",
        "--no-build-isolation",
        "-d",
        str(scratch),
        "-r",
        str(scratch / "pycuda.txt"),
    )
    (archive,) = scratch.glob("pycuda-*.tar.gz")
    subprocess.run(["tar", "-xzf", archive, "-C", scratch], check=True)
    source = next(path for path in scratch.glob("pycuda-*") if path.is_dir())
    (source / "siteconf.py").write_text(_SITECONF)
    environment = os.environ | {
        "CUDA_ROOT": str(root),
        "PATH": f"{root / 'bin'}:{os.environ['PATH']}",
        "LDFLAGS": f"-L{links} {_LINKER}",
        "CXXFLAGS": f"-I{root / 'include'}",
        "MAKEFLAGS": "-j2",
    }
    pip("install", "--no-build-isolation", "--target", str(made), str(source), environment=environment, hashes=False)
    for path in tools.iterdir():  # what pycuda needs at run time; the compiler (hundreds of MB) stays behind
        if path.name != "nvidia" and not path.name.startswith("nvidia_") and not (made / path.name).exists():
            path.rename(made / path.name)
    return made


def _cuda_root(tools: Path) -> Path:
    (nvcc,) = tools.glob("nvidia/*/bin/nvcc")
    return nvcc.parents[1]


def _link(root: Path, links: Path) -> None:
    """Names for the linker: the wheels have only versioned ones, and no driver."""
    for name in ("libcudart.so", "libcurand.so"):
        found = sorted(root.glob(f"lib/{name}.*"))
        if found:
            (links / name).symlink_to(found[0])
    (links / "empty.c").write_text("")
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", links / "libcuda.so", links / "empty.c"],
        check=True,
    )
