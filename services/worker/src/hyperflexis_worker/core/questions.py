"""Questions to peers that are open: of each owner only the one asked last counts, whatever answers come late."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

Owner = TypeVar("Owner")


class Questions(Generic[Owner]):
    """`numbers`: shared by everybody whose answers come by the same way."""

    def __init__(self, numbers: Iterator[int]) -> None:
        self._numbers = numbers
        self._owners: dict[int, Owner] = {}
        self._open: dict[Owner, int] = {}

    def __len__(self) -> int:
        """Open ones."""
        return len(self._open)

    def ask(self, owner: Owner) -> int:
        """The number of its next question; an older one that is still open is not wanted any more."""
        self.drop(owner)
        number = self._open[owner] = next(self._numbers)
        self._owners[number] = owner
        return number

    def answered(self, number: int) -> Owner | None:
        """Whose question this answers; None where it is not wanted any more, or somebody else's."""
        owner = self._owners.pop(number, None)
        if owner is not None:
            del self._open[owner]
        return owner

    def drop(self, owner: Owner) -> None:
        """It wants no answer any more."""
        number = self._open.pop(owner, None)
        if number is not None:
            del self._owners[number]
