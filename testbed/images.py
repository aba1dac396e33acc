"""VaultML's own images as the process nodes run them: this checkout's code in this environment."""

import sys
from pathlib import Path

from testbed.kubernetes import Image
from vaultml_worker import fetch

_PATH = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"


def images() -> dict[str, Image]:
    """By name, whatever the tag; the environment is what the Dockerfiles set, and where models lie here."""
    env = {"PATH": _PATH, "ORT_DISABLE_TELEMETRY": "1", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1"}
    return {
        "vaultml/operator": Image(entrypoint=(sys.executable, "-m", "vaultml_operator.cli"), env=env),
        "vaultml/worker": Image(
            entrypoint=(sys.executable, "-m", "vaultml_worker.cli"),
            command=("worker",),
            env=env | {"VAULTML_CACHE": str(fetch.cache())},
        ),
    }
