import pytest

from normcore.records import Point
from worker.report.comparison import MEASURES, Estimate, Outcome, compare, median_width


def curve(key, values, every=10):
    return [Point(key, every * (1 + position), value) for position, value in enumerate(values)]


def outcome(
    arm, seed, *, accuracy, losses=((1.0, 2.0), (0.5, 1.0), (0.25, 4.25)), recomputed=None, beta=(1.0, 3.0, 2.0)
):
    low, high = zip(*losses, strict=True)
    curves = {
        "test/accuracy": curve("test/accuracy", [0.1, accuracy]),
        "train/accuracy": curve("train/accuracy", [0.0] * 18 + [0.8, 0.9], every=1),
        "landscape/loss_min": curve("landscape/loss_min", low),
        "landscape/loss_max": curve("landscape/loss_max", high),
        "landscape/effective_beta_times_lr": curve("landscape/effective_beta_times_lr", beta),
    }
    if recomputed is not None:
        curves["test/accuracy_recomputed"] = curve("test/accuracy_recomputed", [0.2, recomputed])
    return Outcome(arm, seed, curves)


def test_table_by_hand():
    rows = compare(
        [
            outcome("none", 0, accuracy=0.5),
            outcome("batch + noise", 0, accuracy=0.75, recomputed=0.875),
            outcome("none", 1, accuracy=0.75, losses=((1.0, 4.0), (1.0, 4.0), (2.0, 4.0)), beta=(4.0, 4.0, 5.0)),
        ]
    )
    assert [measure.heading for measure in MEASURES] == [
        "test accuracy",
        "test accuracy, statistics recomputed",
        "test accuracy, noise on",
        "train accuracy",
        "loss band",
        "effective beta x lr",
        "points not finite",
    ]
    assert [(row.arm, row.seeds) for row in rows] == [("none", (0, 1)), ("batch + noise", (0,))]
    none, noisy = rows
    # Widths 1, 0.5, 4 have the median 1, and 3, 3, 2 the median 3: mean 2, deviation sqrt(2).
    assert none.cells[0] == Estimate(0.625, pytest.approx(0.125 * 2**0.5))
    assert none.cells[1] is None
    assert none.cells[2] is None
    assert none.cells[3] == Estimate(pytest.approx(0.85), pytest.approx(0.0, abs=1e-12))
    assert none.cells[4] == Estimate(2.0, pytest.approx(2**0.5))
    assert none.cells[5] == Estimate(3.0, pytest.approx(2**0.5))
    assert none.cells[6] == Estimate(0.0, 0.0)
    assert noisy.cells[:2] == (Estimate(0.75, None), Estimate(0.875, None))


def test_train_accuracy_of_a_short_training_is_its_last_batch():
    short = Outcome("batch", 0, {"train/accuracy": curve("train/accuracy", [0.1, 0.7])})
    assert compare([short])[0].cells[3] == Estimate(0.7, None)


def test_band_takes_only_steps_that_have_both_ends():
    curves = {"low": curve("low", [1.0, 1.0]), "high": [Point("high", 20, 4.0), Point("high", 30, 100.0)]}
    assert median_width("low", "high")(curves) == 3.0


def test_arm_that_ended_before_it_measured_anything_has_empty_cells():
    assert compare([Outcome("none", 0, {})])[0].cells == (None,) * len(MEASURES)


def test_a_cell_says_how_many_seeds_it_is_of():
    (row,) = compare([Outcome("none", 0, {}), Outcome("none", 1, {"test/accuracy": curve("test/accuracy", [0.2])})])
    assert str(row.cells[0]) == "0.200 (1 of 2 seeds)"


def test_points_that_were_not_finite_are_counted():
    blown = {"landscape/nonfinite_points": curve("landscape/nonfinite_points", [3.0, 1.0])}
    (row,) = compare([Outcome("none", 0, blown)])
    assert row.cells[6] == Estimate(4.0, None)
