"""Kafka's jars: fetched once with Maven, kept by version in the user's cache folder."""

import shutil
import subprocess
from pathlib import Path
from xml.etree import ElementTree

from testbed.cache import cache, kept

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

    Raises RuntimeError with Maven's output when it fails.
    """
    return kept(_cache(), _fetch)


def _fetch(scratch: Path) -> Path:
    fetched = scratch / "lib"
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
    return fetched


def _cache() -> Path:
    version = ElementTree.parse(_POM).findtext("{*}properties/{*}kafka.version")
    return cache() / f"kafka-{version}" / "lib"
