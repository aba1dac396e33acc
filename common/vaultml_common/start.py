"""What both commands do before anything else."""

import os
import signal
from types import FrameType


def end_on_sigterm() -> None:
    """End at once on SIGTERM, until the command has a handler of its own.

    As process 1 of a container a program has no default action for SIGTERM: while it imports and starts, which takes
    seconds, the signal would be lost, and the pod would run for its whole grace period.
    """
    signal.signal(signal.SIGTERM, _end)


def _end(number: int, _frame: FrameType | None) -> None:
    os._exit(128 + number)
