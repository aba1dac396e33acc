"""Pure: when a log had grown to where, so that an offset can be given a time."""

from bisect import bisect_right

_MOST = 64


class EndOffsetHistory:
    """Times at which a log's end was seen, thinned out with age: since when the message at an offset has been there."""

    __slots__ = ("_points",)

    def __init__(self) -> None:
        self._points: list[tuple[int, float]] = []

    def add(self, time: float, end: int) -> None:
        """The end was `end` at `time`. An end that went back (the topic was made anew) begins a new history."""
        if self._points and end < self._points[-1][0]:
            self._points.clear()
        if self._points and end == self._points[-1][0]:
            # The log stood still until now: what comes next came later than this.
            if len(self._points) > 1 and self._points[-2][0] == end:
                self._points.pop()
            self._points.append((end, time))
            return
        self._points.append((end, time))
        if len(self._points) > _MOST:
            # The first two stay: between them lies the oldest time that is known. So does the newest.
            del self._points[2:-1:2]

    def since(self, offset: int) -> float | None:
        """When the message at `offset` came, between the looks around it; None: before the first one, or not yet."""
        after = bisect_right(self._points, (offset, float("inf")))
        if after == 0 or after == len(self._points):
            return None
        (low, began), (high, ended) = self._points[after - 1], self._points[after]
        return began + (ended - began) * (offset + 1 - low) / (high - low) if high > low else ended
