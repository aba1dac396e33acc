"""What a person sees: the pipelines as a live table with the latest Events; without a terminal, a line per change."""

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Protocol, TextIO

import structlog
from rich.console import Console, Group
from rich.live import Live
from rich.table import Column, Table
from rich.text import Text

from vaultml_operator.local.rows import Row, cell, columns
from vaultml_operator.local.store import Event

_log = structlog.get_logger(__name__)

_EVENTS = 10
_WIDE_FROM = 130
"""Columns of the terminal from which the wide ones have room."""
_CHANGES = tuple(name for name in columns(wide=True) if name not in ("RATE", "OLDEST"))
"""Columns whose change is worth a line: the others change all the time."""
_COLOURS = {"True": "green", "False": "red"}


class Screen(Protocol):
    """Where pipelines and Events are shown."""

    def show(self, rows: Sequence[Row], events: Sequence[Event]) -> None:
        """Show how things are now."""
        ...

    def close(self) -> None:
        """Leave the last picture."""
        ...


def screen(out: TextIO, heading: str) -> Screen:
    """A live table on a terminal, lines elsewhere; `heading` stands above. Nobody need be looking."""
    return _Patient(lambda: _Table(Console(file=out), heading) if out.isatty() else _Lines(out, heading), out)


class _Patient:
    """Goes on without showing anything once the terminal or the pipe is gone: the workers must not end with it."""

    def __init__(self, make: Callable[[], Screen], out: TextIO) -> None:
        self._make = make
        self._inner: Screen | None = None
        self._blind = False
        self._out = out

    def show(self, rows: Sequence[Row], events: Sequence[Event]) -> None:
        """See Screen."""
        self._do(lambda inner: inner.show(rows, events))

    def close(self) -> None:
        """See Screen."""
        self._do(lambda inner: inner.close())

    def _do(self, act: Callable[[Screen], None]) -> None:
        if self._blind:
            return
        try:
            self._inner = self._inner or self._make()
            act(self._inner)
        except OSError as error:
            self._blind = True
            _log.warning("nobody is looking any more", cause=error.strerror)
            # What is still buffered would fail again at the end.
            with suppress(OSError), Path(os.devnull).open("w") as nowhere:
                os.dup2(nowhere.fileno(), self._out.fileno())


class _Table:
    def __init__(self, console: Console, heading: str) -> None:
        self._console = console
        self._heading = heading
        self._live = Live(console=console, auto_refresh=False, transient=False)
        self._live.start()

    def show(self, rows: Sequence[Row], events: Sequence[Event]) -> None:
        """See Screen."""
        self._live.update(picture(rows, events, self._heading, self._console.width), refresh=True)

    def close(self) -> None:
        """See Screen."""
        self._live.stop()


def picture(rows: Sequence[Row], events: Sequence[Event], heading: str, width: int) -> Group:
    """The table and the latest Events."""
    pipelines = Table(*columns(wide=width >= _WIDE_FROM), box=None, padding=(0, 2, 0, 0))
    for row in rows:
        cells = [Text(cell(row[name.lower()])) for name in columns(wide=width >= _WIDE_FROM)]
        cells[1].stylize(_COLOURS.get(cells[1].plain, "yellow"))
        pipelines.add_row(*cells)
    decided = [Text(f"{row['name']}: {row['decision']}", "italic") for row in rows if row["decision"]]
    told = Table(
        Column("TIME", no_wrap=True),
        Column("PIPELINE", no_wrap=True),
        Column("REASON", no_wrap=True),
        Column("MESSAGE", overflow="fold"),
        box=None,
        padding=(0, 2, 0, 0),
    )
    for event in list(events)[-_EVENTS:]:
        style = "yellow" if event.kind == "Warning" else ""
        told.add_row(_clock(event), event.pipeline, Text(event.reason, style), Text(_note(event)))
    return Group(Text(heading, "dim"), "", pipelines, *decided, "", told)


class _Lines:
    """Each pipeline whose row has changed, and each new Event, as a line."""

    def __init__(self, out: TextIO, heading: str) -> None:
        self._out = out
        self._rows: dict[tuple[str, str], Row] = {}
        self._last: Event | None = None
        self._say(heading)

    def show(self, rows: Sequence[Row], events: Sequence[Event]) -> None:
        """See Screen."""
        for event in _after(events, self._last):
            self._say(f"{_clock(event)}  {event.pipeline}  {event.kind} {event.reason}: {_note(event)}")
        self._last = events[-1] if events else None
        for row in rows:
            key = (row["namespace"], row["name"])
            before = self._rows.get(key, {})
            if row["ready"] and any(before.get(name.lower()) != row[name.lower()] for name in _CHANGES):
                self._say(f"{_clock(None)}  {line(row)}")
                if row["decision"] and before.get("desired") != row["desired"]:
                    self._say(f"{_clock(None)}  {row['namespace']}/{row['name']}  decided: {row['decision']}")
                self._rows[key] = row

    def close(self) -> None:
        """See Screen."""

    def _say(self, text: str) -> None:
        self._out.write(text + "\n")
        self._out.flush()


def line(row: Row) -> str:
    """A row in one line, without what is not known."""
    named = ((name, cell(row[name.lower()])) for name in columns(wide=True) if name != "NAME")
    return f"{row['namespace']}/{row['name']}  " + "  ".join(f"{name} {text}" for name, text in named if text)


def _after(events: Sequence[Event], last: Event | None) -> Sequence[Event]:
    """Those that came after `last`; the same again is news, too."""
    return [event for event in events if last is None or event.time > last.time]


def _clock(event: Event | None) -> str:
    moment = datetime.now().astimezone() if event is None else event.time.astimezone()
    return moment.strftime("%H:%M:%S")


def _note(event: Event) -> str:
    return event.note if event.count == 1 else f"{event.note} (×{event.count})"
