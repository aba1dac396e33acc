"""Where what is fetched or built once is kept."""

import tempfile
from collections.abc import Callable
from pathlib import Path

from vaultml_common.machine import cache_folder as cache

__all__ = ["cache", "kept"]


def kept(folder: Path, make: Callable[[Path], Path]) -> Path:
    """`folder`; when it is not there yet, what `make` gives, which it makes in the scratch folder it is handed.

    The folder appears whole or not at all, whoever is interrupted or makes the same at the same time. Raises what
    `make` raises.
    """
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="made-") as scratch:
        made = make(Path(scratch))
        try:
            made.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was first, with the same
                raise
    return folder
