"""The log of each worker in a file named after its pod: kept small, and the last ones kept."""

import os
import shutil
from collections.abc import Collection
from pathlib import Path

_LARGEST = 10 << 20
"""Bytes after which a log begins anew; what it held until then is kept once, as .1."""
_KEPT = 50
_WORDS = 2048
"""Bytes of a log's end that are a container's last words, and so many lines."""
_LINES = 80


class Logs:
    """A folder of logs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.forget(frozenset())

    def path(self, pod: str) -> Path:
        """Where the log of a pod is."""
        return self.folder / f"{pod}.log"

    def open(self, pod: str) -> int:
        """A descriptor to append to, and for us alone to read."""
        return os.open(self.path(pod), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def size(self, pod: str) -> int:
        """In bytes."""
        try:
            return self.path(pod).stat().st_size
        except OSError:
            return 0

    def last_words(self, pod: str, since: int) -> str:
        """The end of what was written after the first `since` bytes."""
        try:
            with self.path(pod).open("rb") as file:
                end = file.seek(0, os.SEEK_END)
                file.seek(max(since if since <= end else 0, end - _WORDS))
                text = file.read().decode(errors="replace")
        except OSError:
            return ""
        return "\n".join(text.splitlines()[-_LINES:])

    def keep_small(self, pod: str) -> None:
        """Begin anew when it has grown large; the process goes on with the same descriptor."""
        if self.size(pod) > _LARGEST:
            path = self.path(pod)
            shutil.copy(path, path.with_suffix(".log.1"))
            os.truncate(path, 0)

    def forget(self, running: Collection[str]) -> None:
        """Remove all but the newest logs, and those of pods that run."""
        # By age: names end in random letters.
        for path in sorted(self.folder.glob("*.log"), key=lambda path: path.stat().st_mtime)[:-_KEPT]:
            if path.stem not in running:
                path.unlink(missing_ok=True)
                path.with_suffix(".log.1").unlink(missing_ok=True)
