"""What the table of variants says, and leaves unsaid."""

from __future__ import annotations

from typing import Any

from variants import COLUMNS, table


def rows(variant: str, *attained: float) -> list[dict[str, Any]]:
    """In every column, by seed."""
    return [
        {"table": "ablations", "variant": variant, "environment": c.environment.name, "load": c.load, "attainment": one}
        for c in COLUMNS
        for one in attained
    ]


def test_changes_are_told_in_points_where_they_are_worth_it_and_sure() -> None:
    found = rows("as it is", 0.8, 0.9) + rows("sure", 0.75, 0.85) + rows("unsure", 0.9, 0.86) + rows("none", 0.8, 0.9)
    heads, _, base, sure, unsure, none = table(found, "ablations")
    assert heads.startswith("| change | mix H200 1x | 1.5x | 2x | mix A100 1x |")
    assert base.startswith("| as it is | .850 |") and sure.startswith("| sure | -5.0 |")
    assert unsure.startswith("| unsure | (+3.0) |") and none.startswith("| none | · |")
