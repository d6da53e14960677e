"""The core's times and bounds, with the values that docs/protocol.md states."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RouterTiming:
    """Durations in microseconds."""

    submit_repeat_us: int = 1_000_000
    """An unanswered Submit is sent again after this."""
    queued_repeat_us: int = 5_000_000
    """A request that is Queued asks again after this."""
    quiet_us: int = 2_000_000
    """No token for this long: Subscribe again."""
    stuck_us: int = 5_000_000
    """A gap in the tokens that no Subscribe has filled for this long: the attempt cannot deliver."""
    feed_down_us: int = 5_000_000
    """A feed that stays down this long: the attempts there cannot deliver."""
    session_silence_us: int = 3_000_000
    """A scheduler that says nothing for this long is gone."""
    no_scheduler_us: int = 30_000_000
    """A request without a place waits this long for a scheduler to appear."""
    unlisted_feed_us: int = 10_000_000
    """An unused feed to a worker that has left the list is closed after this."""
    ahead_tokens: int = 4_096
    """Tokens of one request held because an earlier one is missing."""
    confirm_close: bool = False
    """True: workers keep a finished request's tokens until closed() says that its record is written."""
