"""pip, for what only the test bed needs."""

import subprocess
import sys
from collections.abc import Mapping


def pip(*arguments: str, environment: Mapping[str, str] | None = None, hashes: bool = True) -> None:
    """Run pip on exactly the packages named, digest-checked. Raises RuntimeError with its words, or a compiler's."""
    command = [sys.executable, "-m", "pip", *arguments, "--no-deps", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run(
        command + (["--require-hashes"] if hashes else []),
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"pip {' '.join(arguments)} failed (status {done.returncode}):\n{done.stdout[-4000:]}")
