"""Ends a stack's processes when the program that started them is gone, however it went.

    python -m hyperflexis_cli.guardian RUN

Its standard input is a pipe from that program: the end of the pipe is the end of the program, kill -9 included.
"""

from __future__ import annotations

import signal
import sys

from hyperflexis_cli.tagged import end_tagged

GRACE_S = 3.0


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()
    end_tagged(sys.argv[1], GRACE_S)


if __name__ == "__main__":
    main()
