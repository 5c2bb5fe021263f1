"""The page on surgery and the README's section are run."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("page", "section"), [("docs/surgery.md", "# Surgery"), ("README.md", "## Swap the norms of your own model")]
)
def test_the_blocks_run_one_after_the_other(page, section, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (ROOT / page).read_text()
    assert section in text
    text = text[text.index(section) :]
    if section.startswith("## "):
        text = re.split(r"\n## ", text)[0]
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert blocks
    names: dict[str, object] = {"__name__": "page"}
    for block in blocks:
        exec(compile(block, page, "exec"), names)
