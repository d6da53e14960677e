"""Sends planned requests when they are due, whatever has become of the earlier ones, and records each."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

from hyperflexis_cli.plan import Planned
from hyperflexis_cli.record import Record
from hyperflexis_client import (
    Accepted,
    AsyncClient,
    AsyncGeneration,
    Delta,
    Finished,
    HyperFlexisError,
    Model,
    NoticeKind,
    ProtocolError,
    Sampling,
)

REQUEST_TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class Objective:
    """What is asked for instead of a tier's own; None = the tier's."""

    ttft_ms: float | None = None
    tpot_ms: float | None = None


@dataclass(slots=True)
class Progress:
    """The replay at this moment; a display may read it at any time."""

    planned: int
    elapsed_s: float = 0.0
    running: int = 0
    records: list[Record] = field(default_factory=list)
    """Of every request sent, ended or not."""
    prompt_tokens: int = 0
    """Prompt tokens of the requests that have their first token."""
    output_tokens: int = 0

    @property
    def done(self) -> int:
        return len(self.records) - self.running


class Replay:
    """One run over a plan.

    Prompts are random token ids, the same for the same seed; outputs have the length planned.
    """

    def __init__(
        self,
        client: AsyncClient,
        plan: Sequence[Planned],
        model: Model,
        *,
        seed: int = 0,
        max_inflight: int = 1_000,
        timeout_s: float = REQUEST_TIMEOUT_S,
        detach_grace_ms: int = 10_000,
        objectives: Mapping[str, Objective] | None = None,
    ) -> None:
        """At most `max_inflight` requests are open at once; who has to wait for that counts as late.

        `objectives` loosen those of the tiers they name.
        """
        self._client = client
        self._plan = plan
        self._model = model
        self._seed = seed
        self._places = asyncio.Semaphore(max_inflight)
        self._timeout_s = timeout_s
        self._detach_grace_ms = detach_grace_ms
        self._objectives = objectives or {}
        self.began_s = 0.0
        """On time.perf_counter(); what all times of the records count from."""
        self.progress = Progress(len(plan))

    async def run(self) -> list[Record]:
        """Sends everything and waits until everything has ended; the records in order of arrival."""
        self.began_s = time.perf_counter()
        async with asyncio.TaskGroup() as tasks:
            for planned in self._plan:
                prompt = self._prompt(planned)
                await asyncio.sleep(max(0.0, planned.at_s - self._now_s()))
                await self._places.acquire()
                record = Record(planned, sent_s=self._now_s())
                self.progress.records.append(record)
                self.progress.running += 1
                tasks.create_task(self._send(record, prompt))
        self._now_s()
        return self.progress.records

    def _now_s(self) -> float:
        self.progress.elapsed_s = time.perf_counter() - self.began_s
        return self.progress.elapsed_s

    def _prompt(self, planned: Planned) -> list[int]:
        random = Random(f"{self._seed}/{planned.index}")
        return random.choices(range(self._model.vocab_size), k=planned.prompt_tokens)

    async def _send(self, record: Record, prompt: list[int]) -> None:
        objective = self._objectives.get(record.planned.tier, Objective())
        generation = self._client.generate(
            self._model.name,
            prompt,
            sampling=Sampling(max_tokens=record.planned.output_tokens, ignore_eos=True),
            tier=record.planned.tier,
            ttft_ms=objective.ttft_ms,
            tpot_ms=objective.tpot_ms,
            detach_grace_ms=self._detach_grace_ms,
            return_text=False,
            timeout_s=self._timeout_s,
        )
        record.sent_s = self._now_s()
        try:
            await self._read(generation, record)
        except ProtocolError as error:
            record.error = str(error)
            record.repeated_tokens = error.repeated
            record.missing_tokens = error.missing
        except HyperFlexisError as error:
            record.error = f"{type(error).__name__}: {error}"
        finally:
            record.ended_s = self._now_s()
            record.reconnections = generation.reconnections
            self.progress.running -= 1
            self._places.release()

    async def _read(self, generation: AsyncGeneration, record: Record) -> None:
        async for event in generation:
            match event:
                case Delta(token_ids=token_ids) if token_ids:
                    record.last_token_s = self._now_s()
                    if record.first_token_s is None:
                        record.first_token_s = record.last_token_s
                        self.progress.prompt_tokens += record.planned.prompt_tokens
                    record.output_tokens += len(token_ids)
                    self.progress.output_tokens += len(token_ids)
                case Accepted(request_id=request_id, slo=slo):
                    record.request_id, record.slo = request_id, slo
                case Finished():
                    record.finished = event
                    if event.message and not event.reason.complete:
                        record.error = f"{event.reason}: {event.message}"
        downgrades = (notice for notice in generation.notices if notice.kind is NoticeKind.DOWNGRADED)
        record.downgrade = next(downgrades, None)
        record.downgraded = record.downgrade is not None
