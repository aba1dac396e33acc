"""Which offset of a partition may be committed while its messages finish in any order."""

from collections import deque


class Progress:
    """The messages of one partition in work, in the order in which they came.

    Only the prefix of finished messages may be committed. `closed`: the partition went to another worker, so what is
    still in work here will be done there.
    """

    def __init__(self) -> None:
        self.closed = False
        self._reached: int | None = None
        self._committed: int | None = None
        self._waiting: deque[int] = deque()
        self._finished: set[int] = set()

    def start(self, offset: int) -> None:
        """A message came."""
        self._waiting.append(offset)

    def finish(self, offset: int) -> None:
        """Its outcome is durable."""
        self._finished.add(offset)

    def advance(self) -> int | None:
        """The offset to commit (one after the finished prefix), or None when that one was given out before."""
        while self._waiting and self._waiting[0] in self._finished:
            offset = self._waiting.popleft()
            self._finished.remove(offset)
            self._reached = offset + 1
        if self._reached == self._committed:
            return None
        self._committed = self._reached
        return self._reached

    def again(self) -> None:
        """The last commit failed or may have: give its offset out once more."""
        self._committed = None
