"""The losses against their definitions."""

import torch

from normcore.menu.datasets import DigitsSpec
from normcore.objective import hits, loss_of, squared_error


def test_the_loss_of_classes_is_the_mean_cross_entropy():
    outputs, labels = torch.randn(4, 3, dtype=torch.float64), torch.tensor([0, 2, 1, 1])
    expected = (
        -sum(
            torch.log(torch.exp(row[label]) / torch.exp(row).sum()) for row, label in zip(outputs, labels, strict=True)
        )
        / 4
    )
    torch.testing.assert_close(loss_of(DigitsSpec())(outputs, labels), expected)


def test_the_squared_error_is_a_sum_over_outputs_and_samples():
    outputs, targets = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    expected = sum((a - b) ** 2 for a, b in zip(outputs.flatten().tolist(), targets.flatten().tolist(), strict=True))
    assert abs(squared_error(outputs, targets).item() - expected) < 1e-12


def test_a_hit_is_where_the_largest_output_is_that_of_the_class():
    assert hits(torch.tensor([[[1.0, 2.0], [3.0, 0.0]]]), torch.tensor([[1, 1]])).tolist() == [[True, False]]
