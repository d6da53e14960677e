"""When to try again, and how long to wait first. Pure: the caller brings time and chance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hyperflexis_client._errors import FailedPrecondition, HyperFlexisError, NotFound, Refused, Unavailable


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How stubborn the client is."""

    deadline_s: float = 30.0
    """Give up this long after the connection was lost."""
    first_delay_s: float = 0.1
    """Wait before the first repetition; doubles up to `max_delay_s`. Jittered down to half."""
    max_delay_s: float = 1.0
    retry_refused: bool = False
    """Wait as long as the server asks and repeat, where it refuses a request that it has not accepted."""


class Recovery:
    """The repetitions of one call or stream: says how long to wait, or raises what ended it."""

    def __init__(self, policy: RetryPolicy, targets: int, uniform: Callable[[], float]) -> None:
        """`targets` is how many routers there are, `uniform` draws from [0, 1)."""
        self._policy = policy
        self._targets = targets
        self._uniform = uniform
        self._failures = 0
        self._unknown_to = 0
        self._give_up_at_s: float | None = None

    def connected(self) -> None:
        """A router has the request: the time to give up counts from the next break."""
        self._unknown_to = 0
        self._give_up_at_s = None

    def progressed(self) -> None:
        """Tokens flow again: the next break waits as short as the first. (A router that only accepts and
        breaks is met with growing patience.)"""
        self._failures = 0

    def delay_s(
        self,
        error: HyperFlexisError,
        now_s: float,
        *,
        accepted: bool,
        carry_request: Callable[[], bool] = lambda: False,
    ) -> float:
        """Seconds to wait before the next attempt. Raises `error` where there should be none.

        `carry_request`: called when no router seems to have the request; True = the next attempt brings it along.
        """
        if self._give_up_at_s is None:
            self._give_up_at_s = now_s + self._policy.deadline_s
        if isinstance(error, Unavailable):
            delay = self._backoff_s()
            if accepted and self._failures >= 2 * self._targets:
                carry_request()
        elif isinstance(error, NotFound) and accepted:
            # A request that Redis does not hold is known to one router only: ask each of them once.
            self._unknown_to += 1
            if self._unknown_to >= self._targets and not carry_request():
                raise error
            delay = 0.0
        elif isinstance(error, FailedPrecondition) and accepted:
            # What the routers know ends before what came: only the request itself fills that gap.
            if not carry_request():
                raise error
            delay = 0.0
        elif (
            isinstance(error, Refused)
            and self._policy.retry_refused
            and not accepted
            and error.retry_after_s is not None
        ):
            delay = error.retry_after_s
        else:
            raise error
        if now_s + delay > self._give_up_at_s:
            raise error
        return delay

    def _backoff_s(self) -> float:
        full = min(self._policy.first_delay_s * 2.0**self._failures, self._policy.max_delay_s)
        self._failures = min(self._failures + 1, 32)
        return full * (0.5 + 0.5 * self._uniform())
