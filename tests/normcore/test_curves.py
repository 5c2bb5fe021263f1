"""A window of steps, read at once, is what one would have read step by step."""

import math

import pytest
import torch

from normcore.curves import MOST_STEPS, Curves

CPU = torch.device("cpu")


def remember(curves, step, loss=1.0, right=1):
    logits = torch.eye(4)
    labels = torch.tensor([0, 1, 2, 3])
    labels[right:] = (labels[right:] + 1) % 4
    curves.remember(step, 0.1 * step, torch.tensor(loss, dtype=torch.float64, requires_grad=True), logits, labels)


def values(window, key):
    return [(point.step, point.value) for point in window.points if point.key == key]


def test_each_step_has_its_loss_accuracy_and_lr():
    curves = Curves(1, CPU)
    for step, loss, right in ((5, 0.5, 1), (6, 0.25, 3), (7, 2.0, 4)):
        remember(curves, step, loss, right)
    window = curves.flush(7)
    assert (window.step, window.bad_loss) == (7, None)
    assert values(window, "train/loss") == [(5, 0.5), (6, 0.25), (7, 2.0)]
    assert values(window, "train/accuracy") == [(5, 0.25), (6, 0.75), (7, 1.0)]
    assert values(window, "train/lr") == [(5, 0.5), (6, 0.1 * 6), (7, 0.1 * 7)]


def test_only_recorded_steps_have_points_but_every_loss_is_looked_at():
    curves = Curves(3, CPU)
    for step in range(4, 9):
        remember(curves, step, math.nan if step == 8 else float(step))
    window = curves.flush(8)
    assert values(window, "train/loss") == [(6, 6.0)]
    assert (window.step, math.isnan(window.bad_loss)) == (7, True)


def test_a_window_ends_before_the_first_loss_that_is_not_finite():
    curves = Curves(1, CPU)
    for step, loss in ((1, 1.0), (2, math.inf), (3, 1.0), (4, math.nan)):
        remember(curves, step, loss)
    window = curves.flush(4)
    assert (window.step, window.bad_loss) == (1, math.inf)
    assert values(window, "train/loss") == [(1, 1.0)]
    assert values(window, "time/step_ms") == []


def test_a_window_without_recorded_steps_has_only_its_clocks():
    curves = Curves(100, CPU)
    remember(curves, 1)
    assert [(point.key, point.step) for point in curves.flush(1).points] == [
        ("time/step_ms", 1),
        ("memory/peak_mib", 1),
    ]


def test_a_flush_starts_the_next_window():
    curves = Curves(1, CPU)
    remember(curves, 1)
    curves.flush(1)
    remember(curves, 2)
    assert values(curves.flush(2), "train/loss") == [(2, 1.0)]


def test_a_window_is_full_after_so_many_steps():
    curves = Curves(1, CPU)
    for step in range(1, MOST_STEPS):
        remember(curves, step)
    curves.resume_clock()
    assert not curves.full
    remember(curves, MOST_STEPS)
    assert curves.full


def test_a_window_is_full_after_a_while_and_pauses_do_not_count(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("normcore.curves.perf_counter", lambda: now[0])
    curves = Curves(1, CPU)
    remember(curves, 1)
    remember(curves, 2)
    with curves.paused():
        now[0] += 50.0
    now[0] += 0.2
    assert not curves.full
    now[0] += 0.1
    assert curves.full
    ((step, step_ms),) = values(curves.flush(2), "time/step_ms")
    assert (step, step_ms) == (2, pytest.approx(150.0))


def test_remembering_keeps_no_graph():
    curves = Curves(1, CPU)
    remember(curves, 1)
    assert not curves._losses[0].requires_grad
