"""Where what is fetched or built once is kept."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path


def cache() -> Path:
    """$VAULTML_CACHE, else the user's cache folder."""
    if given := os.environ.get("VAULTML_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vaultml"


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
