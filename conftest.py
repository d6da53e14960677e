"""Hypothesis without deadlines: how long an example takes on a busy machine is no property of the code."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("hyperflexis", deadline=None, print_blob=True)
settings.load_profile("hyperflexis")
