"""Rows of text under a head, for reports that people read in a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns as wide as their widest cell; a column that is empty throughout is left out.

    Example:
        >>> print(table(("path", "was", "why"), [("bn1", "BatchNorm2d", ""), ("head.norm", "LayerNorm", "")]))
        path       was
        bn1        BatchNorm2d
        head.norm  LayerNorm
    """
    rows = list(rows)
    columns = [column for column in range(len(head)) if any(row[column] for row in rows)]
    lines = [[line[column] for column in columns] for line in (head, *rows)]
    widths = [max(len(cell) for cell in cells) for cells in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)
