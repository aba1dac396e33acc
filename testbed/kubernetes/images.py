"""Images: what a container of a given image runs on this machine."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class Image:
    """What an image's configuration says: entrypoint, default command, environment, working directory.

    Containers see this machine's files and keep what they write to themselves, in a layer that goes with them;
    `shared` names folders for which that isn't so (as for coverage data). `files` names folders that are the image: no
    volume hides them, as one at /tmp would where they lie below it.

    A real image has its own files in the folder `root`, and runs as `user`: containers see these instead.
    """

    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=lambda: {"PATH": _PATH})
    working_folder: str = "/"
    shared: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    root: str = "/"
    user: int | None = None


# For pods of tests: a shell, and Python for whatever takes more.
BUSYBOX = Image(command=("sh",))
PYTHON = Image(command=("python",), env={"PATH": f"{Path(sys.executable).parent}:{_PATH}"})


def find(images: Mapping[str, Image], reference: str) -> Image | None:
    """The image that a reference names; the table's names are without tag, digest and, if they like, registry."""
    name = reference.partition("@")[0]
    head, colon, tag = name.rpartition(":")
    if colon and "/" not in tag:
        name = head
    while name not in images and "/" in name:
        name = name.partition("/")[2]
    return images.get(name)
