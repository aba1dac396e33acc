"""Run a command that dies with the process that asked for it: `die_with_parent.py PARENT COMMAND…`.

A script of its own, since what is done between fork and exec in a process with threads may hang.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Never returns."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(sys.argv[1]):
        sys.exit(1)  # it died in the meantime
    try:
        os.execvp(sys.argv[2], sys.argv[2:])  # noqa: S606 - the command is what we are here for
    except OSError as error:
        sys.exit(f"{sys.argv[2]}: {error.strerror}")


if __name__ == "__main__":
    main()
