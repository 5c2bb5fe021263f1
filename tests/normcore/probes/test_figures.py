"""The figures of the README can be drawn again from the readings that are kept beside them."""

import re
import runpy
from pathlib import Path

import pytest
from PIL import Image

from normcore.probes.archive import unpack
from normcore.spec import JobSpec

ROOT = Path(__file__).parents[3]
SCRIPT = runpy.run_path(str(ROOT / "docs" / "figures.py"))
SHOWN = re.findall(r'"(docs/figures/[^"]+\.png)"', (ROOT / "README.md").read_text())


def test_every_arm_is_a_job():
    for differs in SCRIPT["ARMS"].values():
        spec = JobSpec.model_validate(SCRIPT["JOB"] | differs)
        assert [probe.kind for probe in spec.probes] == [probe["kind"] for probe in SCRIPT["PROBES"]]


@pytest.mark.parametrize("kind", [probe["kind"] for probe in SCRIPT["PROBES"]])
def test_the_readme_shows_every_probe_in_light_and_dark(kind):
    assert f"docs/figures/{kind}.png" in SHOWN
    assert f"docs/figures/{kind}-dark.png" in SHOWN


@pytest.mark.parametrize("path", SHOWN)
def test_every_picture_is_there(path):
    assert (ROOT / path).stat().st_size < 300_000
    assert size(ROOT / path)[0] > 600


def test_the_readings_of_all_arms_are_kept_and_are_those_that_were_ordered():
    spec = JobSpec.model_validate(SCRIPT["JOB"])
    for probe in spec.probes:
        for arm in SCRIPT["ARMS"]:
            readings = unpack(SCRIPT["file"](SCRIPT["FOLDER"], probe.kind, arm).read_bytes())
            assert [reading.step for reading in readings] == list(range(probe.every, spec.num_steps + 1, probe.every))
            assert {reading.probe for reading in readings} == {probe.kind}


def test_what_is_kept_is_drawn_again(tmp_path):
    kind = SCRIPT["PROBES"][0]["kind"]
    for arm in SCRIPT["ARMS"]:
        kept = SCRIPT["file"](SCRIPT["FOLDER"], kind, arm)
        (tmp_path / kept.name).write_bytes(kept.read_bytes())
    SCRIPT["draw"](tmp_path)
    for name in (f"{kind}.png", f"{kind}-dark.png"):
        assert size(tmp_path / name) == size(SCRIPT["FOLDER"] / name)


def size(path):
    with Image.open(path) as picture:
        return picture.size
