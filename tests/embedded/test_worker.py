"""The whole worker as a process on the embedded broker."""

import json
from pathlib import Path

import jsonschema
import pytest

from testbed.process import wait_for
from testbed.site import event, site
from testbed.worker import Worker
from tests.recordings import clip
from vaultml_worker import results
from vaultml_worker.dev.broker import EmbeddedBroker


@pytest.mark.parametrize("form", ["console", "json"])
def test_recordings_in_results_out(tiny: Path, broker: EmbeddedBroker, tmp_path: Path, form: str) -> None:
    with site(broker, tmp_path) as here, Worker({**here.variables, "LOG_FORMAT": form}, tmp_path / "log") as worker:
        keys = [here.store(f"{i}.mp4", clip(1)) for i in range(5)]
        here.announce(*(event(key, traceId=key) for key in keys), b"{", event("user/gone.mp4"))
        found = here.results(5)
        assert set(found) == set(keys)
        for key, result in found.items():
            assert result["traceId"] == key
            jsonschema.validate(result["vaultml"], results.schema())
        letters = here.messages(f"{here.name}-results.dlq", 2)
        assert sorted(letters) == sorted([b"{", event("user/gone.mp4")])
        worker.wait_ready()
        # Counted once the broker has acknowledged them.
        published = 'vaultml_recordings_total{outcome="published"}'
        wait_for(lambda: worker.metrics()[published] == 5, 30, "the metrics", process=worker.process)
        metrics = worker.metrics()
        assert metrics['vaultml_dead_letters_total{cause="not-found"}'] == 1
        assert worker.get("/healthz")[0] == 200
        assert worker.terminate() == 0
        log = worker.log_text()
    if form == "console":
        assert log.count("checking..\n") == 7
        assert f"Sending to {here.name}-results\n" in log
        assert log.count("next..\n") == 7
        assert "    0 conv     16  3 x 3 / 1   416 x 416 x   3   ->   416 x 416 x  16  0.150 BFLOPs\n" in log
    else:
        records = [json.loads(line) for line in log.splitlines()]
        assert sum(r["event"] == "recording" and r["outcome"] == "published" for r in records) == 5
        assert {r["cause"] for r in records if r.get("outcome") == "dead-letter"} == {"bad-event", "not-found"}


def test_wrong_settings_end_it_with_one_message(tmp_path: Path) -> None:
    with Worker(
        {"QUEUE_SYSTEM": "SQS", "KAFKA_BROKER": "127.0.0.1:9", "FORWARDING_MEDIA": "true"}, tmp_path / "log"
    ) as worker:
        assert worker.wait() == 2
        log = worker.log_text()
    assert log.startswith("vaultml: wrong settings:\n")
    for name in ("QUEUE_SYSTEM", "QUEUE_NAME", "KAFKA_GROUP", "FORWARDING_MEDIA"):
        assert f"  {name}: " in log


def test_a_model_that_does_not_fit_ends_it(tmp_path: Path, tiny: Path, broker: EmbeddedBroker) -> None:
    weights = tmp_path / "cut.weights"
    weights.write_bytes((tiny / "yolov3-tiny.weights").read_bytes()[:-4])
    with site(broker, tmp_path) as here:
        variables = {**here.variables, "MODEL": str(tiny / "yolov3-tiny.cfg"), "MODEL_WEIGHTS": str(weights)}
        with Worker(variables, tmp_path / "log") as worker:
            assert worker.wait() == 2
            assert "35,434,952 bytes, but yolov3-tiny.cfg needs 35,434,956" in worker.log_text()


def test_a_well_known_mistake_in_a_cfg_is_warned_of(tmp_path: Path, tiny: Path, broker: EmbeddedBroker) -> None:
    cfg = tmp_path / "shipped.cfg"
    cfg.write_text((tiny / "yolov3-tiny.cfg").read_text().replace("1,2,3", "0,1,2"))
    with site(broker, tmp_path) as here:
        variables = {**here.variables, "MODEL": str(cfg), "MODEL_WEIGHTS": str(tiny / "yolov3-tiny.weights")}
        with Worker(variables, tmp_path / "log") as worker:
            worker.wait_ready()
            assert "these YOLOv3-tiny weights were trained with 1,2,3" in worker.log_text()


def test_killed_with_sigkill_it_leaves_no_process(tmp_path: Path, tiny: Path, broker: EmbeddedBroker) -> None:
    with site(broker, tmp_path) as here, Worker(here.variables, tmp_path / "log") as worker:
        worker.wait_ready()
        wait_for(lambda: len(worker.started()) >= 2, 20, "the decoders to run")
        worker.kill()
        assert worker.started() == {}


def test_a_file_that_is_no_certificate_ends_it(tmp_path: Path, tiny: Path, broker: EmbeddedBroker) -> None:
    nonsense = tmp_path / "ca.crt"
    nonsense.write_text("no certificate")
    with site(broker, tmp_path) as here:
        variables = {**here.variables, "KAFKA_SECURITY": "SSL", "KAFKA_SSL_CA": str(nonsense)}
        with Worker(variables, tmp_path / "log") as worker:
            assert worker.wait() == 2
            assert f"KAFKA_SSL_CA: {nonsense}: holds no certificate in PEM format" in worker.log_text()
