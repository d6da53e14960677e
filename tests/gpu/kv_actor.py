"""A process with a GPU of its own that does what it is told, and whose end harms nobody else."""

from __future__ import annotations

import contextlib
import faulthandler
import multiprocessing
import os
import time
import traceback
from multiprocessing.connection import Connection
from typing import Any

READY_S = 60.0


class ActorError(Exception):
    """What it was told to do failed there, took too long, or killed it."""


class Actor:
    """Runs one object in a spawned process; its methods are called by name."""

    def __init__(self, name: str, make: type, variables: dict[str, str], give_up: float) -> None:
        """`make()` is called there, with those environment variables. No call lasts beyond `give_up`, on the
        monotonic clock."""
        self.name = name
        self._give_up = give_up
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(make, theirs), name=name, daemon=True)
        before = dict(os.environ)
        os.environ.update(variables)
        try:
            self._process.start()
        finally:
            os.environ.clear()
            os.environ.update(before)
        theirs.close()

    def __enter__(self) -> Actor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ready(self) -> None:
        self.receive(READY_S)

    def call(self, method: str, timeout_s: float = 60.0, **arguments: Any) -> Any:
        """Raises ActorError with the traceback of what was raised there."""
        self.send(method, **arguments)
        return self.receive(timeout_s)

    def send(self, method: str, **arguments: Any) -> None:
        """Begins a call; one at a time, its answer is what `receive` returns."""
        try:
            self._pipe.send((method, arguments))
        except OSError as error:
            raise ActorError(f"{self.name} is gone, exit code {self._process.exitcode}") from error

    def receive(self, timeout_s: float = 60.0) -> Any:
        wait = min(timeout_s, self._give_up - time.monotonic())
        try:
            if not self._pipe.poll(max(wait, 0.0)):
                self._process.kill()
                raise ActorError(f"{self.name} did not answer in {max(wait, 0.0):.0f} s and was killed")
            kind, answer = self._pipe.recv()
        except (EOFError, OSError) as error:
            self._process.join(5)
            raise ActorError(f"{self.name} is gone, exit code {self._process.exitcode}") from error
        if kind == "error":
            raise ActorError(f"in {self.name}: {answer}")
        return answer

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._pipe.send(None)
        self._process.join(8)
        if self._process.is_alive():
            self._process.kill()
            self._process.join(5)
        self._pipe.close()


def _serve(make: type, pipe: Connection) -> None:
    faulthandler.enable()
    answer: tuple[str, Any] = ("ok", None)
    try:
        actor = make()
    except Exception:
        pipe.send(("error", traceback.format_exc(limit=8)))
        return
    pipe.send(answer)
    while True:
        try:
            told = pipe.recv()
        except EOFError:
            return
        if told is None:
            return
        method, arguments = told
        try:
            answer = ("ok", getattr(actor, method)(**arguments))
        except Exception:
            answer = ("error", traceback.format_exc(limit=8))
        pipe.send(answer)
