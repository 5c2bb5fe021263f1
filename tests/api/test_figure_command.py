"""`normcore figure`, as it is typed: readings of a training that is really run, drawn again."""

from pathlib import Path
from shutil import copyfile

import numpy as np
import pytest
from typer.testing import CliRunner

from api.cli import REFUSED, app
from normcore.probes.archive import pack
from normcore.probes.sheet import DARK
from normcore.records import Figure, Reading
from normcore.spec import JobSpec
from normcore.train import train

PROBES = ("landscape", "norm_health", "train_eval_gap")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with the readings of a training as an MLflow run keeps them, and with its figures."""
    folder = tmp_path_factory.mktemp("run")
    spec = JobSpec.model_validate(
        {
            "model": {"kind": "mlp", "hidden": [8]},
            "data": {"kind": "digits", "size": 8},
            "steps": 4,
            "probes": [{"kind": kind, "every": 2} for kind in PROBES],
        }
    )
    records = list(train(spec))
    (folder / "readings").mkdir()
    (folder / "figures").mkdir()
    for kind in PROBES:
        mine = [record for record in records if isinstance(record, Reading) and record.probe == kind]
        assert len(mine) == 2
        (folder / f"readings/{kind}.npz").write_bytes(pack(mine))
    for record in records:
        if isinstance(record, Figure):
            (folder / f"figures/{record.name}.png").write_bytes(record.png)
    return folder


def figure(*words):
    return CliRunner().invoke(app, ["figure", *map(str, words)])


@pytest.mark.parametrize("kind", PROBES)
def test_it_is_byte_for_byte_the_figure_of_the_training(trained, kind, tmp_path):
    done = figure(trained / f"readings/{kind}.npz", "--out", tmp_path / "again.png")
    assert (done.exit_code, done.stdout) == (0, f"{tmp_path / 'again.png'}\n")
    assert (tmp_path / "again.png").read_bytes() == (trained / f"figures/{kind}.png").read_bytes()


def test_it_stands_beside_the_first_file_when_nobody_says_where(trained, tmp_path):
    copyfile(trained / "readings/landscape.npz", tmp_path / "mine.npz")
    assert figure(tmp_path / "mine.npz").stdout == f"{tmp_path / 'mine.png'}\n"
    assert (tmp_path / "mine.png").read_bytes() == (trained / "figures/landscape.png").read_bytes()


def test_the_dark_theme_has_a_dark_ground(trained, tmp_path):
    from PIL import Image

    assert figure(trained / "readings/landscape.npz", "--theme", "dark", "--out", tmp_path / "dark.png").exit_code == 0
    corner = Image.open(tmp_path / "dark.png").convert("RGB").getpixel((0, 0))
    assert "#{:02X}{:02X}{:02X}".format(*corner) == DARK.ground


def test_several_files_stand_side_by_side_under_what_tells_them_apart(trained, tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(
        "normcore.probes.landscape_figure.draw",
        lambda arms, theme: drawn.update(arms=list(arms), theme=theme) or b"png",
    )
    files = [tmp_path / arm / "readings/landscape.npz" for arm in ("batch", "none")]
    for file in files:
        file.parent.mkdir(parents=True)
        copyfile(trained / "readings/landscape.npz", file)
    assert figure(*files).exit_code == 0
    assert drawn["arms"] == ["batch", "none"]
    assert figure(*files, "--theme", "dark", "--name", "batch norm", "--name", "no norm").exit_code == 0
    assert drawn == {"arms": ["batch norm", "no norm"], "theme": DARK}


def write(path, kind="landscape", **columns):
    empty = {"layers": np.asarray([], dtype=str), "scalars": np.asarray([], dtype=str), "facts": np.zeros((0, 2), str)}
    np.savez(path, kind=np.asarray(kind), **empty, **columns)
    return path


def test_mistakes_are_one_sentence_and_an_exit_status(trained, tmp_path):
    good, other = trained / "readings/landscape.npz", trained / "readings/train_eval_gap.npz"
    text, cut, array = (tmp_path / name for name in ("text.npz", "cut.npz", "array.npz"))
    text.write_text("not an archive")
    cut.write_bytes(good.read_bytes()[:-40])
    with array.open("wb") as file:
        np.save(file, np.zeros(3))
    out = tmp_path / "out.png"
    for words, sentence in (
        ((tmp_path / "missing.npz",), "missing.npz cannot be read: No such file or directory"),
        ((tmp_path,), "cannot be read: Is a directory"),
        *(
            ((bad,), "must hold the readings of a probe, as readings/<probe>.npz among the")
            for bad in (text, cut, array)
        ),
        ((good, other), f"one figure is of one kind of probe, got landscape in {good} and train_eval_gap in {other}"),
        ((write(tmp_path / "foo.npz", "foo", step=np.asarray([1])),), "must be of a probe of the menu, got 'foo'"),
        ((write(tmp_path / "bare.npz", "train_eval_gap", step=np.asarray([1])),), "those of the probe train_eval_gap"),
        ((write(tmp_path / "none.npz", step=np.asarray([], dtype=int)),), "must hold a reading, got none"),
        ((good, good), "trainings must have different names"),
        ((good, "--name", "a", "--name", "b"), "each file must have a name, got 1 files and 2 names"),
        ((good, "--out", good), "must not overwrite the readings it is drawn from"),
        ((good, "--out", tmp_path / "no/such/folder.png"), "cannot be written to"),
    ):
        done = figure(*words) if "--out" in words else figure(*words, "--out", out)
        assert done.exit_code == REFUSED, (words, done.output)
        assert sentence in done.stderr
        assert done.stderr.count("\n") == 1
        assert not done.stdout
        assert not out.exists()
    assert Path(good).read_bytes()[:2] == b"PK"
