"""Numbers as people read them."""

from __future__ import annotations


def milliseconds(value: float | None) -> str:
    if value is None:
        return "-"
    if value >= 10_000:
        return f"{value / 1e3:.1f} s"
    return f"{value:,.0f} ms" if value >= 100 else f"{value:.1f} ms"


def microseconds(value: float | None) -> str:
    return milliseconds(None if value is None else value / 1e3)


def share(value: float | None) -> str:
    """0.973 as 97.3 %."""
    return "-" if value is None else f"{value * 100:.1f} %"


def count(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def named(name: str, value: float) -> str:
    """A decision's number: its unit is in its name."""
    if name.endswith("_us"):
        return f"{name.removesuffix('_us')} {microseconds(value)}"
    if name.endswith("_ms"):
        return f"{name.removesuffix('_ms')} {milliseconds(value)}"
    return f"{name} {value:,.0f}" if float(value).is_integer() else f"{name} {value:,.3g}"
