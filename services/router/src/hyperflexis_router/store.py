"""The requests' records in Redis (docs/protocol.md, "State in Redis"): every write is a script fenced by owner_gen."""

from __future__ import annotations

import importlib.resources
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import quote

from redis.exceptions import NoScriptError

from hyperflexis.common.v1 import sampling_pb2, slo_pb2
from hyperflexis.router.v1 import inference_service_pb2
from hyperflexis_common.redis_access import RedisAccess, RedisAway
from hyperflexis_router.core.submission import NewRequest
from hyperflexis_router.faults import Faults

SCRIPTS = ("create", "discard", "append", "amend", "finish", "touch", "adopt")
WRITTEN, OTHER_OWNER, MISSING = 1, 0, -1
"""What a fenced write answers."""


class Command(NamedTuple):
    script: str
    keys: list[str]
    arguments: list[Any]


class Held(NamedTuple):
    """An idempotency key stands for another request already."""

    request_id: str
    digest: str


class OwnershipLost(Exception):
    """Another router owns the request now."""


@dataclass(frozen=True, slots=True)
class Origin:
    """What is recorded of a request beside what the core needs."""

    return_text: bool
    idempotency_key: str = ""
    digest: str = ""


@dataclass(frozen=True, slots=True)
class Record:
    """A request as Redis holds it."""

    request_id: str
    tenant: str
    model: str
    slo: slo_pb2.Slo
    sampling: sampling_pb2.SamplingParams
    prompt: bytes
    prompt_tokens: int
    max_tokens: int
    detach_grace_us: int
    origin: Origin
    router_id: str
    owner_gen: int
    state: str
    """queued, running, detached or finished."""
    age_us: int
    first_token_us: int | None
    served_slo: slo_pb2.Slo | None
    """What it was downgraded to, if it was."""
    finished: inference_service_pb2.Finished | None
    journal: bytes


class RequestStore:
    """Raises RedisAway where Redis does not answer; every script may be repeated after that."""

    def __init__(
        self, access: RedisAccess, router_id: str, faults: Faults, live_ttl_s: int = 3_600, finished_ttl_s: int = 600
    ) -> None:
        self._access = access
        self._router_id = router_id
        self._faults = faults
        self._live_ttl_s = live_ttl_s
        self._finished_ttl_s = finished_ttl_s
        folder = importlib.resources.files("hyperflexis_router") / "lua"
        self._sources = {name: (folder / f"{name}.lua").read_text(encoding="utf-8") for name in SCRIPTS}
        self._digests: dict[str, str] = {}

    # --- commands, to be run in one pipeline ---

    def create(self, new: NewRequest, origin: Origin, age_us: int, with_key: bool = True) -> Command:
        """Answers ["created"], ["held", request_id, digest] or ["lost"]."""
        keys = self._keys(new.request_id)
        if origin.idempotency_key and with_key:
            keys.append(self._idem(new.tenant, origin))
        fields: dict[str, str | bytes | int] = {
            "tenant": new.tenant,
            "model": new.model,
            "tier": new.slo.tier,
            "slo": new.slo.SerializeToString(),
            "sampling": new.sampling.SerializeToString(),
            "prompt": new.prompt,
            "prompt_tokens": new.prompt_tokens,
            "max_tokens": new.max_tokens,
            "detach_grace_us": new.detach_grace_us,
            "return_text": int(origin.return_text),
            "idempotency_key": origin.idempotency_key,
            "digest": origin.digest,
            "state": "queued",
            "router_id": self._router_id,
        }
        arguments: list[Any] = [
            new.owner_gen, new.request_id, origin.digest, self._live_ttl_s, age_us
        ]  # fmt: skip
        for name, value in fields.items():
            arguments += (name, value)
        return Command("create", keys, arguments)

    def append(self, request_id: str, owner_gen: int, index: int, packed: bytes, first_token_us: int | None) -> Command:
        first = "" if first_token_us is None else first_token_us
        return Command("append", self._keys(request_id), [owner_gen, index, packed, self._live_ttl_s, first])

    def finish(
        self, request_id: str, owner_gen: int, result: inference_service_pb2.Finished, tenant: str, origin: Origin
    ) -> Command:
        keys = self._keys(request_id)
        if origin.idempotency_key:
            keys.append(self._idem(tenant, origin))
        return Command("finish", keys, [owner_gen, result.SerializeToString(), self._finished_ttl_s, request_id])

    def downgrade(self, request_id: str, owner_gen: int, slo: slo_pb2.Slo) -> Command:
        """Under which promise it runs now; what was promised at first stays beside it."""
        return Command("amend", self._keys(request_id), [owner_gen, "served_slo", slo.SerializeToString()])

    def discard(self, request_id: str, owner_gen: int) -> Command:
        """Drops a record that this owner has closed."""
        return Command("discard", self._keys(request_id), [owner_gen])

    def touch(self, new: NewRequest, origin: Origin, state: str) -> Command:
        keys = self._keys(new.request_id)
        if origin.idempotency_key:
            keys.append(self._idem(new.tenant, origin))
        return Command("touch", keys, [new.owner_gen, self._live_ttl_s, state])

    async def run(self, commands: Sequence[Command]) -> list[Any]:
        """Runs commands in one round trip and returns their answers."""

        size = sum(len(part) for command in commands for part in command.arguments if isinstance(part, bytes))

        async def once(client: Any) -> list[Any]:
            if not self._digests:
                self._digests = {name: await client.script_load(source) for name, source in self._sources.items()}
            pipeline = client.pipeline(transaction=False)
            for command in commands:
                pipeline.evalsha(self._digests[command.script], len(command.keys), *command.keys, *command.arguments)
            answers: list[Any] = await pipeline.execute(raise_on_error=False)
            for answer in answers:
                if isinstance(answer, Exception) and not isinstance(answer, NoScriptError):
                    raise answer
            return answers

        limit_s = self._access.limit_s(size)
        answers = await self._access.call(once, limit_s)
        if any(isinstance(answer, NoScriptError) for answer in answers):
            # Redis has restarted. The scripts that did run may run again.
            self._digests = {}
            answers = await self._access.call(once, limit_s)
        if self._faults.take_reply():
            raise RedisAway("reply dropped by a fault")
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return answers

    # --- single steps ---

    async def record(self, new: NewRequest, origin: Origin, age_us: int) -> Held | None:
        """Records a request. Raises OwnershipLost. Held = its idempotency key stands for another one."""
        [answer] = await self.run([self.create(new, origin, age_us)])
        if answer[0] == b"lost":
            raise OwnershipLost(new.request_id)
        return Held(answer[1].decode(), answer[2].decode()) if answer[0] == b"held" else None

    async def read(self, request_id: str) -> Record | None:
        """A request as it stands, whoever owns it."""
        req, journal = self._keys(request_id)

        async def once(client: Any) -> list[Any]:
            pipeline = client.pipeline(transaction=False)
            pipeline.hgetall(req).get(journal).time()
            answers: list[Any] = await pipeline.execute()
            return answers

        fields, packed, (seconds, micros) = await self._access.call(once)
        return _record(request_id, fields, packed or b"", seconds * 1_000_000 + micros) if fields else None

    async def adopt(
        self,
        request_id: str,
        expected_gen: int,
        new_gen: int,
        index: int = 0,
        tokens: bytes = b"",
        then: Sequence[Command] = (),
    ) -> Record | None:
        """Takes a request over. None = it is gone. Raises OwnershipLost where somebody else was first.

        `tokens`: the client's own, from `index` on; a journal that differs from them is cut off there. `then`: what the
        new owner writes with that, before the older one can look.
        """
        arguments = [expected_gen, new_gen, self._router_id, index, tokens]
        answer, *_ = await self.run([Command("adopt", self._keys(request_id), arguments), *then])
        if not answer:
            return None
        if answer[0] == b"conflict":
            raise OwnershipLost(request_id)
        fields = dict(zip(answer[2::2], answer[3::2], strict=True))
        return _record(request_id, fields, answer[1], int(answer[0]))

    def _idem(self, tenant: str, origin: Origin) -> str:
        # No tenant can be spelled so that another one's key comes out.
        return f"{self._access.prefix}idem:{quote(tenant, safe='')}:{origin.idempotency_key}"

    def _keys(self, request_id: str) -> list[str]:
        return [f"{self._access.prefix}{kind}:{{{request_id}}}" for kind in ("req", "journal")]


def _record(request_id: str, fields: dict[bytes, bytes], journal: bytes, now_us: int) -> Record:
    def text(name: str) -> str:
        return fields.get(name.encode(), b"").decode()

    def number(name: str) -> int:
        return int(fields.get(name.encode(), b"0"))

    result = fields.get(b"result")
    return Record(
        request_id=request_id,
        tenant=text("tenant"),
        model=text("model"),
        slo=slo_pb2.Slo.FromString(fields.get(b"slo", b"")),
        sampling=sampling_pb2.SamplingParams.FromString(fields.get(b"sampling", b"")),
        prompt=fields.get(b"prompt", b""),
        prompt_tokens=number("prompt_tokens"),
        max_tokens=number("max_tokens"),
        detach_grace_us=number("detach_grace_us"),
        origin=Origin(number("return_text") == 1, text("idempotency_key"), text("digest")),
        router_id=text("router_id"),
        owner_gen=number("owner_gen"),
        state=text("state"),
        age_us=max(0, now_us - number("created_us")),
        first_token_us=number("first_token_us") if b"first_token_us" in fields else None,
        served_slo=slo_pb2.Slo.FromString(fields[b"served_slo"]) if b"served_slo" in fields else None,
        finished=inference_service_pb2.Finished.FromString(result) if result is not None else None,
        journal=journal,
    )
