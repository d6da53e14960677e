"""What the core asks for, and the intent that is recorded before it is done."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from enum import StrEnum


class Kind(StrEnum):
    """Values are what GetFleet shows."""

    START = "start"
    STOP = "stop"
    DRAIN = "drain"
    ADOPT = "adopt"
    REAP = "reap"


class Outcome(StrEnum):
    DONE = "done"
    FAILED = "failed"
    """It certainly had no effect."""
    MISSING = "missing"
    """What it was meant for does not exist."""
    UNKNOWN = "unknown"
    """It may have had its effect: time-out, broken connection."""
    SKIPPED = "skipped"
    """It was never tried."""


@dataclass(frozen=True, slots=True)
class Action:
    """One thing to do. All steps of one removal (drain, stop, kill) share their action_id."""

    action_id: str
    kind: Kind
    group: str
    instance_id: str
    reason: str
    force: bool = False
    """STOP and REAP: kill, and remove every trace."""


@dataclass(frozen=True, slots=True)
class Intent:
    """What is about to be done. It outlives the scaler, so that the next one knows what may have happened."""

    action_id: str
    kind: Kind
    group: str
    instance_id: str
    timeout_us: int
    """From its reading: no effect of it comes later than this."""
    reason: str = ""

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> Intent:
        """Raises ValueError where the text is no intent (written by a later version, say)."""
        try:
            fields = json.loads(text)
            return cls(
                action_id=str(fields["action_id"]),
                kind=Kind(fields["kind"]),
                group=str(fields["group"]),
                instance_id=str(fields["instance_id"]),
                timeout_us=int(fields["timeout_us"]),
                reason=str(fields.get("reason", "")),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"not an intent: {error!r}") from error
