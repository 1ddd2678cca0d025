"""Numbers and tables as people read them."""

from __future__ import annotations

from collections.abc import Sequence

_SECONDS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))
_BYTES = ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))
_MINUTE = 60
_HOUR = 3600


def duration(seconds: float) -> str:
    """Return a time in the unit that suits it."""
    if seconds >= 2 * _HOUR:
        return f"{seconds / _HOUR:.1f} h"
    if seconds >= 2 * _MINUTE:
        return f"{seconds / _MINUTE:.1f} min"
    for unit, name in _SECONDS:
        if seconds >= unit:
            return f"{seconds / unit:.3g} {name}"
    return f"{seconds * 1e9:.0f} ns"


def size(number: float) -> str:
    """Return a number of bytes in the unit that suits it."""
    for unit, name in _BYTES:
        if number >= unit:
            return f"{number / unit:.1f} {name}"
    return f"{number:.0f} B"


def table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return rows as lines of text, without the columns in which nothing stands.

    The first and the last column are texts, the others numbers.
    """
    columns = [
        (name, *column)
        for name, *column in zip(names, *rows, strict=True)
        if any(column) or name == names[0]
    ]
    widths = [max(map(len, column)) for column in columns]
    texts = {names[0], names[-1]}
    lines = []
    for line in zip(*columns, strict=True):
        cells = [
            cell.ljust(width) if column[0] in texts else cell.rjust(width)
            for cell, width, column in zip(line, widths, columns, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
