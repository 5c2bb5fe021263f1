"""Which evaluation is the best so far."""

import math

from normcore.best import Best, best_of
from normcore.evaluation import Evaluation


def bests(evaluations):
    best, seen = None, []
    for step, evaluation in enumerate(evaluations, 1):
        best = best_of(best, step, evaluation)
        seen.append(None if best is None else best.step)
    return seen


def test_the_highest_accuracy_wins_whatever_the_loss_and_of_equals_the_first():
    pairs = [(0.9, 0.5), (1.5, 0.6), (0.1, 0.6), (0.2, 0.4), (3.0, 0.7)]
    assert bests(Evaluation(*pair) for pair in pairs) == [1, 2, 2, 2, 5]


def test_in_a_regression_the_lowest_loss_wins():
    assert bests(Evaluation(loss, None) for loss in (3.0, 1.0, 1.0, 2.0, 0.5)) == [1, 2, 2, 2, 5]


def test_a_loss_that_is_not_finite_is_no_result():
    pairs = [(math.nan, 0.9), (1.0, 0.1), (math.inf, 1.0)]
    assert bests(Evaluation(*pair) for pair in pairs) == [None, 2, 2]


def test_it_survives_as_facts():
    assert Best.of(Best(3, 0.1 + 0.2).facts()) == Best(3, 0.1 + 0.2)
    assert Best.of(None) is None
