import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
import structlog

from vaultml_worker import events, results
from vaultml_worker.observability import Health, HttpServer, Metrics, configure_log, masked_result
from vaultml_worker.queues import Ended
from vaultml_worker.records import Detection


@pytest.fixture(autouse=True)
def _restore_log() -> Iterator[None]:
    yield
    structlog.reset_defaults()


@pytest.mark.parametrize("form", ["console", "json"])
def test_secrets_are_masked_wherever_they_are_logged(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    configure_log(form, "INFO", ("p1anted",))  # type: ignore[arg-type]
    log = structlog.get_logger()
    log.info("with p1anted", field="p1anted", nested={"deep": ["p1anted"]}, plain=None)
    log.error("failed", exc_info=RuntimeError("p1anted"))
    said = capsys.readouterr().out
    assert "p1anted" not in said
    assert "RuntimeError: ***" in said


def test_plain_lines_stand_alone_and_levels_hold(capsys: pytest.CaptureFixture[str]) -> None:
    configure_log("console", "INFO", ())
    structlog.get_logger().info("recording", plain="checking..\nnext..")
    structlog.get_logger().debug("unseen")
    assert capsys.readouterr().out == "checking..\nnext..\n"
    configure_log("json", "INFO", ())
    structlog.get_logger().info("recording", key="k")
    record = json.loads(capsys.readouterr().out)
    assert (record["event"], record["level"], record["key"]) == ("recording", "info", "k")


def test_health_readiness_and_metrics() -> None:
    health, metrics = Health(), Metrics()
    server = HttpServer("127.0.0.1", 0, health, metrics)
    base = f"http://127.0.0.1:{server.port}"
    try:
        assert requests.get(f"{base}/healthz", timeout=5).status_code == 200
        assert requests.get(f"{base}/readyz", timeout=5).status_code == 503
        health.ready = True
        assert requests.get(f"{base}/readyz", timeout=5).status_code == 200
        assert requests.get(f"{base}/other", timeout=5).status_code == 404
        metrics.ended(Ended.PUBLISHED, None)
        metrics.processed([[Detection("car", 0.9, (0, 0, 1, 1))]], {"fetch": 1500.0})
        metrics.ended(Ended.DEAD_LETTERED, "not-found")
        metrics.held("unauthorized", +1)
        metrics.retried("unavailable")
        text = requests.get(f"{base}/metrics", timeout=5).text
    finally:
        server.close()
    for line in (
        'vaultml_recordings_total{outcome="published"} 1.0',
        'vaultml_recordings_total{outcome="dead-letter"} 1.0',
        'vaultml_dead_letters_total{cause="not-found"} 1.0',
        'vaultml_detections_total{label="car"} 1.0',
        'vaultml_stage_seconds_sum{stage="fetch"} 1.5',
        'vaultml_retries_total{cause="unavailable"} 1.0',
        'vaultml_held_recordings{cause="unauthorized"} 1.0',
        "vaultml_in_flight 0.0",
    ):
        assert line in text


def test_every_metric_is_documented() -> None:
    documented = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    names = {family.name for family in Metrics().registry.collect()}
    assert all(name in documented for name in names)


def test_a_stuck_loop_is_not_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    health = Health()
    health.tick()
    health.busy_seconds = lambda: 600.0
    assert not health.alive
    health = Health()
    assert health.alive
    health.tick()
    assert health.alive
    monkeypatch.setattr("vaultml_worker.observability._STUCK_S", -1.0)
    assert not health.alive


def test_a_queue_client_that_can_not_be_replaced_is_not_alive() -> None:
    health = Health()
    health.tick(queue_works=False)
    assert not health.alive


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "::", "0.0.0.0"])
def test_it_listens_on_any_kind_of_address(host: str) -> None:
    server = HttpServer(host, 0, Health(), Metrics())
    reached = {"127.0.0.1": ["127.0.0.1"], "::1": ["[::1]"], "0.0.0.0": ["127.0.0.1"], "::": ["127.0.0.1", "[::1]"]}
    try:
        for address in reached[host]:
            assert requests.get(f"http://{address}:{server.port}/healthz", timeout=5).status_code == 200
    finally:
        server.close()


def test_a_result_is_logged_as_it_would_be_with_everything_masked() -> None:
    url = "https://s3.local/b/a.mp4?X-Amz-Signature=planted"
    event = {
        "source": "s",
        "payload": {"key": "u/a.mp4", "metadata": {"publickey": "planted", "note": f"see {url}"}},
        "data": {"zone": "yard", "storage_secret": "planted"},
    }
    parsed = events.parse(json.dumps({**event, "data": {"zone": "yard", "list": [url]}}).encode())
    detections = [[Detection("car", 0.9, (0, 0, 1, 1))], []]
    result = results.vault_format(parsed, detections, {"objects": {"total": 1}, "tracks": [{"label": "car"}]})
    line = masked_result(result)
    assert line == json.dumps(events.mask(result))
    assert "planted" not in line
    assert list(json.loads(line)) == list(result)
