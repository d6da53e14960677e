"""Faults on demand, for the fault tests only: messages that are never sent.

HYPERFLEXIS_FAULTS="drop_placed=1,drop_run=2" drops the first messages of a kind after this process begins to
lead. With the variable set to anything, SIGUSR1 drops the next Placed of a new grant and SIGUSR2 the next Run. The
log says when one is dropped.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter

from hyperflexis.scheduler.v1 import router_session_pb2, worker_session_pb2

VARIABLE = "HYPERFLEXIS_FAULTS"


class Faults:
    def __init__(self, specification: str | None = None) -> None:
        """Raises ValueError for an entry that is neither a word nor drop_<message>=<count>."""
        text = os.environ.get(VARIABLE, "") if specification is None else specification
        self.enabled = bool(text)
        self._at_begin: Counter[str] = Counter()
        for entry in filter(None, (part.strip() for part in text.split(","))):
            name, equals, count = entry.partition("=")
            if equals:
                self._at_begin[name.removeprefix("drop_")] = int(count)
        self._left: Counter[str] = Counter()

    def begin(self) -> None:
        self._left = Counter(self._at_begin)

    def listen(self) -> None:
        """Installs the signals, where faults are enabled."""
        if self.enabled:
            loop = asyncio.get_running_loop()
            loop.add_signal_handler(signal.SIGUSR1, self.drop_next, "placed")
            loop.add_signal_handler(signal.SIGUSR2, self.drop_next, "run")

    def drop_next(self, kind: str) -> None:
        self._left[kind] += 1

    def drops(
        self, message: router_session_pb2.RouterSessionResponse | worker_session_pb2.WorkerSessionResponse
    ) -> bool:
        if not self.enabled:
            return False
        kind = message.WhichOneof("message") or ""
        if self._left[kind] <= 0:
            return False
        if isinstance(message, router_session_pb2.RouterSessionResponse) and message.placed.started:
            return False  # a repetition, which nobody waits for: dropping it would prove nothing
        self._left[kind] -= 1
        return True
