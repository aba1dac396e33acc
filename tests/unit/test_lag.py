"""What a reader of lags keeps between its rounds."""

import pytest

from vaultml_operator.autoscaler.lag import Ask, kafka
from vaultml_operator.autoscaler.lag.kafka import KafkaReader
from vaultml_operator.probes import Connection


class Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now

    time = monotonic


def test_what_is_no_longer_asked_for_is_forgotten_and_what_is_asked_for_seldom_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock()
    monkeypatch.setattr(kafka, "time", clock)
    reader = KafkaReader(Connection(("127.0.0.1:1",)))
    reader._describes = False
    monkeypatch.setattr(reader, "_topics", lambda names: dict.fromkeys(names, 1))
    monkeypatch.setattr(reader, "_commits", lambda asked, *_: {each: {0: 5} for each in asked})
    monkeypatch.setattr(reader, "_offsets", lambda places, _which: dict.fromkeys(places, 5))
    often, seldom, gone = (Ask(name, "g") for name in ("often", "seldom", "gone"))
    reader._retention["gone"] = (0.0, None)
    for clock.now in range(0, 6 * 3600, 60):
        asked = [often]
        if clock.now % 3600 == 0:
            asked.append(seldom)
        if clock.now < 600:
            asked.append(gone)
        answers = reader.read(asked)
        assert {*answers} == {*asked}
    assert {ask for ask, _ in reader._seen} == {often, seldom}
    assert {queue for queue, _ in reader._histories} == {"often", "seldom"}
    assert not reader._retention
    assert len(reader._asked) == 2
