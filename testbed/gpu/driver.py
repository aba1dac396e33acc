"""Builds and controls the stand-in for the NVIDIA driver (see driver.c)."""

import ctypes
import hashlib
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from testbed.cache import cache, kept

_SOURCE = Path(__file__).with_name("driver.c")
_FLAGS = ("-O1", "-g", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", "-pthread", "-Wl,-soname,libcuda.so.1")
MEMORY = 8 << 30
"""Bytes of the stand-in's device memory, unless set otherwise."""

INVALID_VALUE, OUT_OF_MEMORY, NO_DEVICE, NOT_SUPPORTED, LAUNCH_FAILED, UNKNOWN = 1, 2, 100, 801, 719, 999
_LIVE = ("device bytes", "host blocks", "streams", "events", "contexts", "operations")


def available() -> str | None:
    """Return None when the stand-in can be built here, else one sentence that says what is missing."""
    return None if shutil.which("cc") else "The stand-in for the GPU driver needs a C compiler (cc) on the PATH."


def build(users: Sequence[Path]) -> Path:
    """Compile the stand-in, with a stub for every call that the libraries `users` want and it doesn't know.

    Returns the folder with libcuda.so.1 in it, from the cache when it is there. Raises RuntimeError with the
    compiler's words.
    """
    wanted = sorted({name for user in users for name in _undefined(user)})
    source = _SOURCE.read_text()
    digest = hashlib.sha256("\n".join([source, *_FLAGS, *wanted]).encode()).hexdigest()

    def compiled(scratch: Path) -> Path:
        made = scratch / "lib"
        made.mkdir()
        stubs = (f"int {name}(void) {{ return {NOT_SUPPORTED}; }}\n" for name in wanted if f"int {name}(" not in source)
        (made / "stubs.c").write_text("".join(stubs))
        _cc(*_FLAGS, "-o", str(made / "libcuda.so.1"), str(_SOURCE), str(made / "stubs.c"))
        return made

    return kept(cache() / f"gpu-driver-{digest[:16]}", compiled)


def _cc(*arguments: str) -> None:
    done = subprocess.run(["cc", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"cc could not build the stand-in for the GPU driver:\n{done.stderr}")


def _undefined(library: Path) -> list[str]:
    done = subprocess.run(["nm", "-D", "--undefined-only", library], capture_output=True, text=True, check=True)
    names = (line.split()[-1].partition("@")[0] for line in done.stdout.splitlines() if line.strip())
    return [name for name in names if name.startswith("cu") and name[2:3].isupper()]


class Driver:
    """The stand-in in this process: pycuda finds it when it is loaded first."""

    def __init__(self, folder: Path) -> None:
        """Load libcuda.so.1 from `folder`."""
        self.library = ctypes.CDLL(str(folder / "libcuda.so.1"), mode=ctypes.RTLD_GLOBAL)
        self.library.standin_violations.restype = ctypes.c_char_p
        self.library.standin_live.restype = ctypes.c_size_t
        self.library.standin_set.argtypes = [ctypes.c_int, ctypes.c_size_t, ctypes.c_int, ctypes.c_int]

    def reset(self) -> None:
        """As after a reboot: nothing allocated, nothing failing, one GPU with `MEMORY` bytes, others run first."""
        self.library.standin_reset()
        self.set()

    def set(
        self,
        *,
        own_first: bool = False,
        memory: int = MEMORY,
        devices: int = 1,
        capability: tuple[int, int] = (8, 9),
    ) -> None:
        """Set the order in which streams run when one is waited for, and what devices there are."""
        self.library.standin_set(int(own_first), memory, devices, 10 * capability[0] + capability[1])

    def fail(self, call: str, code: int, after: int = 0) -> None:
        """Let the driver's `call` (without _v2) fail once with `code`, after so many more that succeed."""
        self.library.standin_fail(call.encode(), after, code)

    @property
    def faults_left(self) -> int:
        """Injected failures that have not happened yet."""
        return int(self.library.standin_faults_left())

    @property
    def violations(self) -> list[str]:
        """What a real GPU would have done wrong without a word."""
        text: bytes = self.library.standin_violations()
        return text.decode().splitlines()

    def live(self) -> dict[str, int]:
        """What is allocated, retained or under way, by kind; empty when everything was given back."""
        counts = {name: int(self.library.standin_live(number)) for number, name in enumerate(_LIVE)}
        return {name: count for name, count in counts.items() if count}
