"""What people and programs see of the pipelines."""

import io
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from rich.console import Console

from vaultml_operator.local import rows, table
from vaultml_operator.local.rows import Row
from vaultml_operator.local.store import Event

BODY: dict[str, Any] = {
    "metadata": {"name": "edge", "namespace": "default"},
    "spec": {"queue": {"name": "ml-queue"}},
    "status": {
        "conditions": [
            {"type": "Paused", "status": "False", "reason": "NotPaused", "message": ""},
            {"type": "Ready", "status": "True", "reason": "Running", "message": "2 of 2 workers ready"},
        ],
        "workers": "2/2",
        "gpu": "none",
        "autoscaling": {
            "desiredReplicas": 2,
            "lag": 7,
            "rate": "1/s",
            "oldestMessageAge": "4s",
            "processed": 9,
            "message": "lag 7: 2",
        },
    },
}
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)


def event(number: int, note: str = "from 0 to 2", kind: str = "Normal") -> Event:
    return Event(BEGAN + timedelta(seconds=number), kind, "default/edge", "ScaledOut", note)


def shown(pictures: Sequence[tuple[list[Row], list[Event]]]) -> list[str]:
    out = io.StringIO()
    screen = table.screen(out, "heading")
    for each in pictures:
        screen.show(*each)
    screen.close()
    return out.getvalue().splitlines()


def test_the_columns_are_those_of_kubectl() -> None:
    assert rows.columns(wide=False) == ("NAME", "READY", "REPLICAS", "DESIRED", "LAG", "RATE", "GPU", "REASON")
    assert rows.columns(wide=True)[-4:] == ("OLDEST", "LIMIT", "PROCESSED", "DEAD")
    found = rows.row(BODY)
    assert [found[name.lower()] for name in rows.columns(wide=True)] == [
        *("edge", "True", "2/2", 2, 7, "1/s", "none", "Running"),
        *("4s", None, 9, None),
    ]
    assert found["queue"] == "ml-queue"


def test_nothing_is_known_of_a_pipeline_that_was_not_looked_at() -> None:
    found = rows.row({"metadata": BODY["metadata"], "spec": {}})
    assert {found[name.lower()] for name in rows.columns(wide=True)} == {"edge", None}


def test_without_a_terminal_each_change_is_a_line() -> None:
    row = rows.row(BODY)
    measured = {**row, "rate": "2/s", "oldest": "5s"}
    more = {**row, "desired": 3, "decision": "lag 9: 3"}
    events = [event(1)]
    lines = shown([([row], events), ([row], events), ([measured], events), ([more], [*events, event(2, "more")])])
    assert lines[0] == "heading"
    assert [line[10:] for line in lines[1:]] == [
        "default/edge  Normal ScaledOut: from 0 to 2",
        "default/edge  READY True  REPLICAS 2/2  DESIRED 2  LAG 7  RATE 1/s  GPU none  REASON Running  OLDEST 4s  "
        "PROCESSED 9",
        "default/edge  decided: lag 7: 2",
        "default/edge  Normal ScaledOut: more",
        "default/edge  READY True  REPLICAS 2/2  DESIRED 3  LAG 7  RATE 1/s  GPU none  REASON Running  OLDEST 4s  "
        "PROCESSED 9",
        "default/edge  decided: lag 9: 3",
    ]


def test_the_picture_holds_the_table_the_decision_and_the_events_as_they_were_written() -> None:
    for width, wide in ((100, False), (160, True)):
        console = Console(file=io.StringIO(), width=width, force_terminal=False)
        events = [event(1), event(2, "[red]not markup[/]", "Warning")]
        console.print(table.picture([rows.row(BODY)], events, "heading", width))
        text = console.file.getvalue()  # type: ignore[attr-defined]
        for part in ("heading", "READY", "Running", "edge: lag 7: 2", "ScaledOut", "[red]not markup[/]"):
            assert part in text
        assert ("PROCESSED" in text) == wide
