"""Hypothesis without deadlines: how long an example takes on a busy machine is no property of the code. And a Redis."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from redis_server import RedisServer

settings.register_profile("hyperflexis", deadline=None, print_blob=True)
settings.load_profile("hyperflexis")


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A real one, for all tests of a file."""
    from redis_server import RedisServer  # where tests/support is installed, which not every suite needs

    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.kill()
