"""Dead letters are read again with another target, as in examples/replay.yaml, and none of them twice."""

import json
from pathlib import Path

import yaml

from testbed.process import wait_for
from testbed.site import event, site
from testbed.worker import Worker
from tests.recordings import clip
from vaultml_common.kafka import dead_letter_topic
from vaultml_worker.dev.broker import EmbeddedBroker

QUEUE = yaml.safe_load((Path(__file__).parents[2] / "examples" / "replay.yaml").read_text())["spec"]["queue"]


def test_replayed_dead_letters_fail_once_more_and_no_more(tiny: Path, broker: EmbeddedBroker, tmp_path: Path) -> None:
    with site(broker, tmp_path) as here:
        results, replayed = (f"{here.name}-{QUEUE[each].removeprefix('ml-')}" for each in ("name", "target"))
        assert results == dead_letter_topic(here.name, f"{here.name}-results")
        assert results not in (replayed, dead_letter_topic(results, replayed))
        broker.create(replayed, dead_letter_topic(results, replayed))
        late = event("user/late.mp4")
        with Worker(here.variables, tmp_path / "log") as worker:
            here.announce(b"{", event("user/gone.mp4"), late)
            assert len(here.messages(results, 3)) == 3
            assert worker.terminate() == 0
        here.store("late.mp4", clip(0.2))
        again = {"QUEUE_NAME": results, "QUEUE_TARGET": replayed, "KAFKA_GROUP": f"{here.name}-replay"}
        with Worker({**here.variables, **again}, tmp_path / "replay.log") as worker:
            (result,) = here.messages(replayed, 1)
            assert json.loads(result)["payload"]["key"] == "user/late.mp4"
            letters = here.messages(dead_letter_topic(results, replayed), 2)
            assert sorted(letters) == sorted([b"{", event("user/gone.mp4")])
            dead = 'vaultml_recordings_total{outcome="dead-letter"}'
            wait_for(lambda: worker.metrics().get(dead) == 2, 30, "the metrics", process=worker.process)
            # One message more than there should be would come within this time.
            assert len(here.messages(dead_letter_topic(results, replayed), 3, timeout=5)) == 2
            assert len(here.messages(results, 4, timeout=5)) == 3
            assert worker.metrics()[dead] == 2
