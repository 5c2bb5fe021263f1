"""The README is held to the code: its tables are what the menu and the settings say, and its example is a job."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from normcore.menu.spec import Spec
from normcore.spec import MENU, JobSpec, kind_of
from worker.settings import Settings

README = Path(__file__).parents[1] / "README.md"


def test_the_menu_table_is_the_menu() -> None:
    assert section("menu") == menu_table()


def test_the_settings_table_is_the_settings() -> None:
    assert section("settings") == settings_table()


def test_every_json_body_is_a_job() -> None:
    bodies = re.findall(r"-d '(\{.*?\})'", README.read_text(), flags=re.DOTALL)
    assert bodies
    for body in bodies:
        JobSpec.model_validate_json(body)


def test_every_make_target_exists() -> None:
    makefile = (README.parent / "Makefile").read_text()
    for target in set(re.findall(r"`?make ([a-z]+)", README.read_text())):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


@pytest.mark.parametrize("path", re.findall(r"\]\(([^)#:]+)\)", README.read_text()))
def test_every_relative_link_leads_somewhere(path: str) -> None:
    assert (README.parent / path).exists()


def section(name: str) -> str:
    """The lines between `<!-- name -->` and `<!-- /name -->`."""
    found = re.search(rf"<!-- {name} -->\n(.*?)\n<!-- /{name} -->", README.read_text(), flags=re.DOTALL)
    assert found, f"README.md has no section <!-- {name} -->"
    return found.group(1).strip()


def menu_table() -> str:
    """One row a part: family, kind, first sentence, knobs with defaults."""
    rows = ["| family | kind | what it is | knobs and defaults |", "|---|---|---|---|"]
    for family, parts in MENU.items():
        rows += [f"| {family} | `{kind_of(part)}` | {summary(part)} | {knobs(part)} |" for part in parts]
    return "\n".join(rows)


def settings_table() -> str:
    """One row a setting: variable, default, meaning."""
    rows = ["| variable | default | meaning |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = (
            "the host's name" if field.default_factory else "unset" if field.default is None else f"`{field.default}`"
        )
        rows.append(f"| `NORMCORE_{name.upper()}` | {default} | {field.description} |")
    return "\n".join(rows)


def summary(part: type[Spec]) -> str:
    """The first paragraph of the part's docstring, on one line."""
    return " ".join((part.__doc__ or "").split("\n\n")[0].split())


def knobs(part: type[Spec]) -> str:
    """Each knob with its default, as JSON, or none where it must be given."""
    fields = part.model_fields.items()
    defaults = {name: "" if field.is_required() else f" {json.dumps(field.default)}" for name, field in fields}
    return ", ".join(f"`{name}`{default}" for name, default in defaults.items() if name != "kind") or "none"
