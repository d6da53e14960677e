"""Who is calling, and how much at once."""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping

import grpc

from hyperflexis_router.rejection import Context, Rejected, quota, retry_after

OPEN_TENANT = "default"
RETRY_AFTER_US = 1_000_000


class Authenticator:
    """API keys by hash. Without any, everybody is the default tenant."""

    def __init__(self, tenants_by_hash: Mapping[str, str]) -> None:
        self._tenants = dict(tenants_by_hash)

    def tenant(self, context: Context) -> str:
        """The caller's tenant. Raises Rejected(UNAUTHENTICATED)."""
        if not self._tenants:
            return OPEN_TENANT
        metadata = dict(context.invocation_metadata() or ())
        scheme, _, key = str(metadata.get("authorization", "")).partition(" ")
        if scheme.lower() != "bearer" or not key:
            raise Rejected(grpc.StatusCode.UNAUTHENTICATED, "send metadata `authorization: Bearer <API key>`")
        # Looking a digest up leaks nothing useful by its timing.
        tenant = self._tenants.get(hashlib.sha256(key.strip().encode()).hexdigest())
        if tenant is None:
            raise Rejected(grpc.StatusCode.UNAUTHENTICATED, "this API key is not known here")
        return tenant


class InFlight:
    """Calls that are on their way to a request, and requests that have not ended."""

    def __init__(self, limit: int, tenant_limit: int) -> None:
        self._limit = limit
        self._tenant_limit = tenant_limit
        self._by_tenant: Counter[str] = Counter()
        self.total = 0

    def enter(self, tenant: str) -> None:
        """Raises Rejected(RESOURCE_EXHAUSTED) at a limit."""
        if self.total >= self._limit:
            raise self._exhausted("router", f"this router serves {self._limit} requests at once; try another or wait")
        if self._by_tenant[tenant] >= self._tenant_limit:
            raise self._exhausted(
                f"tenant:{tenant}", f"{self._tenant_limit} requests of this tenant are in flight here"
            )
        self.total += 1
        self._by_tenant[tenant] += 1

    def leave(self, tenant: str) -> None:
        self.total -= 1
        self._by_tenant[tenant] -= 1
        if not self._by_tenant[tenant]:
            del self._by_tenant[tenant]

    @contextlib.contextmanager
    def until_kept(self, tenant: str) -> Iterator[list[bool]]:
        """Counts a call; set the yielded flag once a request carries the count on."""
        self.enter(tenant)
        kept = [False]
        try:
            yield kept
        finally:
            if not kept[0]:
                self.leave(tenant)

    def _exhausted(self, subject: str, message: str) -> Rejected:
        return Rejected(
            grpc.StatusCode.RESOURCE_EXHAUSTED, message, [quota(subject, message), retry_after(RETRY_AFTER_US)]
        )
