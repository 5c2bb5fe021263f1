"""The page on conventions is what is measured today."""

import runpy
from pathlib import Path

from normcore.certificate.shelf import shelf

SCRIPT = Path(__file__).parents[3] / "docs" / "conformance.py"


def test_the_page_is_up_to_date():
    script = runpy.run_path(str(SCRIPT))
    assert set(script["REFERENCES"]) == set(shelf())
    assert script["page"]() == script["PAGE"].read_text(), "run .venv/bin/python docs/conformance.py"
