# ruff: noqa: INP001 - a script of the image's build, in no package
"""What an extra of a pyproject.toml asks for, one requirement a line: `requirements.py pyproject.toml service`.

The image installs these in a layer of its own, which stays as it is while no requirement changes.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def requirements(project: dict[str, Any], extra: str) -> list[str]:
    """The project's dependencies and those of `extra`, its own extras within them written out; sorted, each once.

    Example:
        >>> table = {"name": "p", "dependencies": ["a"], "optional-dependencies": {"x": ["b", "p[y]"], "y": ["a"]}}
        >>> requirements(table, "x")
        ['a', 'b']
    """
    return sorted({*project["dependencies"], *_of_extra(project, extra)})


def _of_extra(project: dict[str, Any], extra: str) -> Iterator[str]:
    own = re.compile(re.escape(project["name"]) + r"\[([^]]+)\]")
    for requirement in project["optional-dependencies"][extra]:
        if found := own.fullmatch(requirement):
            for inner in found.group(1).split(","):
                yield from _of_extra(project, inner.strip())
        else:
            yield requirement


if __name__ == "__main__":
    path, wanted = sys.argv[1:]
    print(*requirements(tomllib.loads(Path(path).read_text(encoding="utf-8"))["project"], wanted), sep="\n")
