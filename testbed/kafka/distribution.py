"""Kafka's jars: fetched once with Maven, kept by version in the user's cache folder."""

import shutil
import subprocess
import tempfile
from pathlib import Path
from xml.etree import ElementTree

from testbed.process import cache

_POM = Path(__file__).with_name("pom.xml")


def available() -> str | None:
    """Return None when a broker can be started here, else one sentence saying what is missing."""
    if shutil.which("java") is None:
        return "A Kafka broker needs java (17 or newer) on the PATH."
    if not _cache().is_dir() and shutil.which("mvn") is None:
        return "A Kafka broker needs mvn (Maven) on the PATH, to fetch its jars the first time."
    return None


def jars() -> Path:
    """Return the folder with Kafka's jars, fetching them (54 MB) when they are not there yet.

    The folder appears whole or not at all, whoever is interrupted or fetches at the same time. Raises RuntimeError
    with Maven's output when it fails.
    """
    lib = _cache()
    if lib.is_dir():
        return lib
    lib.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=lib.parent, prefix="fetch-") as scratch:
        fetched = Path(scratch) / "lib"
        maven = subprocess.run(
            ["mvn", "-B", "-q", "-f", _POM, "dependency:copy-dependencies", f"-DoutputDirectory={fetched}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if maven.returncode != 0:
            raise RuntimeError(f"mvn could not fetch Kafka's jars (status {maven.returncode}):\n{maven.stdout}")
        try:
            fetched.rename(lib)
        except OSError:
            if not lib.is_dir():  # else another process was first, with the same jars
                raise
    return lib


def _cache() -> Path:
    version = ElementTree.parse(_POM).findtext("{*}properties/{*}kafka.version")
    return cache() / f"kafka-{version}" / "lib"
