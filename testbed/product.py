"""What this project's images are on the test bed: the commands of this environment."""

import sys
from pathlib import Path

from testbed.kubernetes import Image
from vaultml_common.machine import cache_folder

_BIN = Path(sys.executable).parent
_CHECKOUT = Path(__file__).parents[1]


def images() -> dict[str, Image]:
    """`vaultml/worker` and `vaultml/operator`, whatever their tags, as their Dockerfiles set them up."""
    env = {"PATH": f"{_BIN}:/usr/bin:/bin", "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    # The worker's image has the default model baked in: here, it is in the cache.
    worker = env | {"VAULTML_CACHE": str(cache_folder()), "ORT_DISABLE_TELEMETRY": "1"}
    files = tuple(dict.fromkeys(str(each) for each in (_CHECKOUT, Path(sys.prefix), cache_folder()) if each.is_dir()))
    return {
        "vaultml/worker": Image(entrypoint=(str(_BIN / "vaultml"),), command=("worker",), env=worker, files=files),
        "vaultml/operator": Image(entrypoint=(str(_BIN / "vaultml-operator"),), command=("run",), env=env, files=files),
    }
