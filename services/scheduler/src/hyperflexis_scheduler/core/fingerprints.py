"""Which workers of a model make the same tokens: they have one fingerprint, and whoever has another stays out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from enum import Enum

from hyperflexis_scheduler.core.memory import WorkerRecord


class Verdict(Enum):
    FITS = "fits"
    NOT_NOW = "not now"
    """It differs, but it is not certain yet which of them is right."""
    NEVER = "never"


class Fingerprints:
    """The live workers of a model say what is right. Under a leader that is young, or has not been able to read the
    records of the one before, a single wrong one may be the first to come: nobody is turned away for good on its
    word, and where the records tell, it is turned away itself."""

    def __init__(self, young_until_us: int) -> None:
        self._young_until_us = young_until_us
        self._recorded: dict[str, bytes] = {}
        self._read = False

    def learn(self, records: Iterable[WorkerRecord]) -> None:
        """Records of the workers that were here a moment ago; none, where there were none."""
        seen: dict[str, Counter[bytes]] = {}
        for record in records:
            seen.setdefault(record.model, Counter())[record.fingerprint] += 1
        self._recorded = {model: counts.most_common(1)[0][0] for model, counts in seen.items()}
        self._read = True

    def contradicts(self, model: str, fingerprint: bytes) -> bool:
        """The records of this model name another one."""
        return self._recorded.get(model, fingerprint) != fingerprint

    def verdict(self, model: str, fingerprint: bytes, live: bytes | None, now_us: int) -> Verdict:
        """`live`: that of another worker of the model which is here."""
        young = now_us < self._young_until_us
        if live is None:
            return Verdict.NOT_NOW if young and self.contradicts(model, fingerprint) else Verdict.FITS
        if live == fingerprint:
            return Verdict.FITS
        certain = self._read and (not young or live == self._recorded.get(model))
        return Verdict.NEVER if certain else Verdict.NOT_NOW
