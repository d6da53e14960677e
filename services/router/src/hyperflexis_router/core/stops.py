"""Stop strings over a growing text: where one is complete, and how much of the end may still become one."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Fed text piece by piece. What `push` returns is safe to show: no stop string begins in it."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.matched: str | None = None
        """The stop string that ended the text. It and everything after it are never shown."""

    def push(self, text: str) -> str:
        """The text that became safe to show. After a match nothing more does."""
        if self.matched is not None:
            return ""
        if not self._stops:
            return text
        text = self._held + text
        found = min(
            ((at, -len(stop), stop) for stop in self._stops if (at := text.find(stop)) >= 0),
            default=None,
        )
        if found is not None:
            at, _, self.matched = found
            self._held = ""
            return text[:at]
        keep = max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """The text has ended: what was held back can be shown."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[-length:]):
            return length
    return 0
