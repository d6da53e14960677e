"""The routers' sessions."""

from __future__ import annotations

from hyperflexis_scheduler.core.heartbeat import Heartbeat
from hyperflexis_scheduler.core.request import RouterKey


class RouterState:
    def __init__(self, key: RouterKey, session: int, now_us: int) -> None:
        self.key = key
        self.session = session
        self.pulse = Heartbeat(now_us)


class Routers:
    """Routers by session and by life; one session per life."""

    def __init__(self) -> None:
        self.by_session: dict[int, RouterState] = {}
        self.by_key: dict[RouterKey, RouterState] = {}

    def add(self, router: RouterState) -> RouterState | None:
        """Returns the older session of the same life, which is now over."""
        older = self.by_key.get(router.key)
        if older is not None:
            del self.by_session[older.session]
        self.by_key[router.key] = self.by_session[router.session] = router
        return older

    def remove(self, session: int) -> None:
        router = self.by_session.pop(session, None)
        if router is not None:
            del self.by_key[router.key]
