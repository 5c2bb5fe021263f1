"""`normcore certify`, as it is typed."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from api.cli import REFUSED, REFUTED, app
from normcore.certificate.shelf import shelf

README = Path(__file__).parents[2] / "README.md"

LAYER = """
from torch import nn

class MyNorm(nn.BatchNorm2d):
    pass

class Prints(MyNorm):
    def forward(self, x):
        print("forward")
        return super().forward(x)

class Drops(MyNorm):
    def forward(self, x):
        return super().forward(x).contiguous()
"""


@pytest.fixture
def certify(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path])
    (tmp_path / "certified_mine.py").write_text(LAYER)
    return lambda *words: CliRunner().invoke(app, ["certify", *words])


def test_a_norm_of_the_menu_passes(certify):
    done = certify("batch", "--only", "conventions", "--num-features", "4", "--arg", "momentum=0.3")
    assert done.exit_code == 0, done.output
    layer, heading, *rows, summary = done.stdout.splitlines()
    assert layer.startswith("BatchNorm(4, eps=1e-05, momentum=0.3")
    assert heading.split() == ["PROPERTY", "CLAIMED", "OBSERVED", "ERROR", "TOLERANCE", "VERDICT"]
    assert ["weight", "of", "the", "newest", "batch", "0.3", "0.3"] in [row.split()[:7] for row in rows]
    assert summary.endswith("passed, 0 failed, 0 skipped, 1 not claimed")


def test_ones_own_layer_is_tried_as_the_norm_it_wants_to_be(certify):
    words = ("--like", "batch", "--only", "company", "--only", "conventions")
    assert certify("certified_mine:MyNorm", *words).exit_code == 0
    done = certify("certified_mine:Drops", *words)
    assert done.exit_code == REFUTED
    assert [line.split()[:2] for line in done.stdout.splitlines() if line.split()[-1] == "fail"] == [
        ["memory", "format"]
    ]


def test_ones_own_layer_without_claims_is_described(certify):
    done = certify("certified_mine:Drops", "--only", "company")
    assert done.exit_code == 0
    assert "dropped: channels_last" in done.stdout


def test_json_is_one_object(certify):
    done = certify("certified_mine:Drops", "--like", "batch", "--only", "company", "--json")
    assert done.exit_code == REFUTED
    read = json.loads(done.stdout)
    assert read["passed"] is False
    assert [row["property"] for row in read["rows"] if row["verdict"] == "fail"] == ["memory format"]


def test_what_a_layer_prints_is_not_among_the_json(certify):
    done = certify("certified_mine:Prints", "--only", "invariances", "--json")
    assert json.loads(done.stdout)["passed"] is True
    assert "forward" in done.stderr


def test_a_module_that_leaves_when_it_is_imported_is_refused(certify, tmp_path):
    (tmp_path / "certified_script.py").write_text("import sys\nsys.exit(0)\n")
    done = certify("certified_script:MyNorm")
    assert done.exit_code == REFUSED
    assert "certified_script cannot be imported: SystemExit: 0 (certified_script.py, line 2)" in done.stderr


def test_the_whole_shelf_has_a_line_each(certify):
    done = certify("--all", "--only", "invariances")
    assert done.exit_code == 0, done.output
    assert [line.split()[0] for line in done.stdout.splitlines()] == shelf()
    read = json.loads(certify("--all", "--only", "invariances", "--json").stdout)
    assert len(read) == len(shelf())
    assert all(certificate["passed"] for certificate in read)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "certify takes a layer, or --all for every norm of the menu; give one of the two"),
        (["batch", "--all"], "certify takes a layer, or --all for every norm of the menu; give one of the two"),
        (["--all", "--like", "batch"], "--arg, --like and --num-features are for a single layer"),
        (["bach"], 'there is no norm of kind "bach"'),
        (["batch", "--like", "bach"], 'there is no norm of kind "bach"'),
        (["batch", "--only", "speed"], "there are the rows invariances, gradients, conventions, precision, company"),
        (["certified_nowhere:MyNorm"], "there is no module certified_nowhere"),
        (["instance", "--arg", "eps=-1"], "instance cannot be had so: eps: input should be greater than 0"),
        (["torch.nn:Bilinear", "--arg", "in2_features=8", "--arg", "out_features=8"], "this one takes none of"),
    ],
)
def test_what_cannot_be_certified_is_one_sentence(certify, words, sentence):
    done = certify(*words)
    assert done.exit_code == REFUSED
    assert done.stdout == ""
    assert sentence in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_help_comes_without_torch():
    program = "import sys; from api.cli import app; app(['certify', '-h'], standalone_mode=False); "
    program += "print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "--num-features" in done.stdout
    assert done.stdout.splitlines()[-1] == "False"


def test_the_readmes_section_does_what_it_says(certify, capsys):
    section = README.read_text().split("## Certify a layer\n")[1].split("\n## ")[0]
    lines = [line.split()[2:] for line in section.splitlines() if line.startswith(".venv/bin/normcore certify ")]
    assert [certify(*words, "--only", "company").exit_code for words in lines] == [0, REFUTED]
    (block,) = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
    exec(block, {})
    assert "Santurkar's theorem 4.1" in capsys.readouterr().out
