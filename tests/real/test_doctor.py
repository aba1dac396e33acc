"""`vaultml doctor` as a user starts it: on the real broker, a Vault, and a stand-in for the GPU's driver."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import trustme

from testbed.kafka import Broker
from testbed.process import LOOPBACK, free_port
from testbed.service import environment
from tests.real.scene import ACCOUNT, STRANGER, Scene

COMMAND = [sys.executable, "-m", "vaultml_worker", "doctor"]
LONGEST_S = 22
"""What the command may take, with the start of Python."""

Found = dict[str, dict[str, str]]


def doctor(variables: Mapping[str, str]) -> tuple[int, Found]:
    """Its exit code and its findings by name."""
    start = time.monotonic()
    done = subprocess.run(
        [*COMMAND, "--json"], env=environment(variables), capture_output=True, text=True, check=False, timeout=60
    )
    assert time.monotonic() - start < LONGEST_S
    for secret in filter(None, (variables["KAFKA_PASSWORD"], ACCOUNT.access_key, ACCOUNT.secret_key)):
        assert secret not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.returncode, {one["name"]: one for one in json.loads(done.stdout)}


def wrong(found: Found) -> list[str]:
    return [name for name, one in found.items() if one["state"] == "wrong"]


def test_all_is_well(stage: Callable[..., Scene]) -> None:
    scene = stage(3)
    scene.create(scene.queue, scene.target)
    code, found = doctor(scene.environment())
    assert (code, wrong(found)) == (0, [])
    assert found["queue"]["found"] == f"topic {scene.queue.name}, 3 partitions"
    assert found["results"]["found"] == f"topic {scene.target.name}, 1 partition"
    assert found["group"]["found"] == f"{scene.group}: may be read, has commits in 0 of 3 partitions"
    assert found["Vault"]["found"] == f"{scene.vault.url} answers, and takes the keys"
    assert found["model"]["found"].startswith("yolov3-tiny, sha256 dccea06f59b7")


def test_it_leaves_the_queue_as_it_is(scene: Scene) -> None:
    scene.send(*scene.events(2))
    assert doctor(scene.environment())[0] == 0
    assert scene.members() == {}
    assert set(scene.committed().values()) == {0}
    worker = scene.worker().wait_ready()
    scene.await_committed()
    assert doctor(scene.environment())[1]["group"]["found"].endswith("has commits in 1 of 1 partitions")
    assert list(scene.members().values()) == [{0}]
    assert worker.terminate() == 0


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-512"])
def test_a_wrong_password(scene: Scene, mechanism: str) -> None:
    code, found = doctor(scene.environment(KAFKA_PASSWORD="wr0ng!@#$%pass", KAFKA_MECHANISM=mechanism))
    assert (code, wrong(found)) == (1, ["broker"])
    assert "authentication failed" in found["broker"]["found"]
    assert found["broker"]["advice"].startswith("check KAFKA_USERNAME, KAFKA_PASSWORD and KAFKA_MECHANISM")


@pytest.mark.parametrize("name", ["queue", "results"])
def test_a_missing_topic(stage: Callable[..., Scene], name: str) -> None:
    scene = stage()
    missing, other = (scene.queue, scene.target) if name == "queue" else (scene.target, scene.queue)
    scene.create(other)
    code, found = doctor(scene.environment())
    assert (code, wrong(found)) == (1, [name])
    assert f"{missing.name}: the topic does not exist" in found[name]["found"]
    assert found[name]["advice"] == "create it, or correct the name"
    assert not missing.exists()


def test_an_untrusted_certificate(kafka: Broker, scene: Scene, tmp_path: Path) -> None:
    stranger = tmp_path / "stranger.pem"
    trustme.CA().cert_pem.write_to_path(stranger)
    tls = {"KAFKA_BROKER": kafka.sasl_ssl, "KAFKA_SECURITY": "SASL_SSL", "KAFKA_SSL_CA": str(stranger)}
    code, found = doctor(scene.environment(**tls))
    assert (code, wrong(found)) == (1, ["broker"])
    assert "TLS failed" in found["broker"]["found"]
    assert "KAFKA_SSL_CA" in found["broker"]["advice"]


def test_nothing_that_can_be_reached(scene: Scene) -> None:
    scene.vault.stop()
    code, found = doctor(scene.environment(KAFKA_BROKER=f"{LOOPBACK}:{free_port()}"))
    assert (code, wrong(found)) == (1, ["broker", "Vault"])
    assert "not reachable" in found["broker"]["found"]
    assert "no connection" in found["Vault"]["found"]


def test_keys_that_vault_refuses(scene: Scene) -> None:
    scene.vault.stop()
    scene.vault.start(STRANGER)
    code, found = doctor(scene.environment())
    assert (code, wrong(found)) == (1, ["Vault"])
    assert "refuses the keys" in found["Vault"]["found"]


def test_the_gpu_that_the_worker_would_use(scene: Scene, gpu: dict[str, str], tmp_path: Path) -> None:
    code, found = doctor(scene.environment(**gpu, ENGINE_CACHE=str(tmp_path / "engines")))
    assert (code, wrong(found)) == (0, [])
    assert found["TensorRT"]["found"] == "tensorrt 11.4.0.106"
    assert "GPU-00112233-4455-6677-8899-aabbccddeeff, 8,192 MiB" in found["device"]["found"]
    assert found["CUDA"]["found"].startswith("13.0 by the driver; pycuda was built for 13.")
    assert found["engine cache"]["found"].startswith(str(tmp_path / "engines"))
    _, found = doctor(scene.environment(**{**gpu, "ENGINE": "auto"}))
    assert "the network runs on the GPU" in found["onnxruntime"]["found"]


@pytest.mark.parametrize(
    ("variables", "part", "says", "todo"),
    [
        ({"LD_LIBRARY_PATH": ""}, "driver", "libcuda.so.1 is not here", "--gpus all"),
        ({"VAULTML_GPU_FAIL": "cuInit:0:100"}, "device", "finds no usable GPU", "nvidia-smi"),
        ({"VAULTML_GPU_FAIL": "cuDevicePrimaryCtxRetain:0:999"}, "device", "the GPU failed", "nvidia-smi"),
    ],
)
def test_a_gpu_that_the_worker_could_not_use(
    scene: Scene, gpu: dict[str, str], variables: dict[str, str], part: str, says: str, todo: str
) -> None:
    code, found = doctor(scene.environment(**{**gpu, **variables}))
    assert (code, wrong(found)) == (1, [part])
    assert says in found[part]["found"]
    assert todo in found[part]["advice"]
    assert found["TensorRT"]["state"] == "ok"
