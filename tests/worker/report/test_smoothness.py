import math
import random
from io import BytesIO

import numpy as np
import pytest
from matplotlib.image import imread

from normcore.records import Point
from worker.report.comparison import Outcome
from worker.report.smoothness import STYLES, _mean, draw


def outcome(arm, seed, roughness):
    chance = random.Random(f"{arm}{seed}")
    curves = {}
    for step in range(25, 401, 25):
        loss = 2.3 * math.exp(-step / 200) * (1 + 0.2 * chance.random())
        change = roughness * (1 + chance.random())
        for key, value in (
            ("landscape/loss_min", loss),
            ("landscape/loss_max", loss * (1 + roughness)),
            ("landscape/gradient_change_min", 0.1 * change),
            ("landscape/gradient_change_max", change),
            ("landscape/effective_beta_times_lr", 2 * roughness * (0.5 + chance.random())),
        ):
            curves.setdefault(key, []).append(Point(key, step, value))
    return Outcome(arm, seed, curves)


@pytest.fixture
def outcomes():
    arms = {"none": 2.0, "batch": 0.3, "batch + noise": 0.5}
    return [outcome(arm, seed, roughness) for arm, roughness in arms.items() for seed in (0, 1)]


def pixels(png):
    return (imread(BytesIO(png))[..., :3] * 255).round().astype(int)


def has_colour(image, colour):
    wanted = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
    return bool((np.abs(image - wanted).max(axis=-1) <= 2).sum() > 200)


def test_every_arm_is_drawn_in_its_colour(outcomes):
    image = pixels(draw(outcomes, "Smoothness"))
    assert image.shape == (1350, 1200, 3)
    assert [has_colour(image, colour) for colour, _ in STYLES] == [True, True, True, False, False]


def test_figure_is_the_same_bytes_each_time(outcomes):
    assert draw(outcomes, "Smoothness") == draw(outcomes, "Smoothness")


def test_mean_is_over_the_seeds_that_measured_a_step():
    curves = [{"loss": [Point("loss", 10, 1.0), Point("loss", 20, 3.0)]}, {"loss": [Point("loss", 10, 2.0)]}]
    assert _mean([Outcome("none", seed, curves[seed]) for seed in (0, 1)], "loss") == {10: 1.5, 20: 3.0}


def test_arm_without_readings_is_left_empty(outcomes):
    without = [Outcome("diverged at once", 0, {}), *outcomes]
    assert pixels(draw(without, "Smoothness")).shape == (1350, 1200, 3)


def test_nothing_measured_at_all_still_gives_a_figure():
    assert pixels(draw([Outcome("none", 0, {})], "Smoothness")).shape == (1350, 1200, 3)
