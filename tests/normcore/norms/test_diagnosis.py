import math

import pytest
import torch
from torch import Tensor, nn

from normcore.norms.batch import BatchNorm
from normcore.norms.diagnosis import worst_diagnoses


class Diagnosed(nn.Module):
    def __init__(self, **numbers: float) -> None:
        super().__init__()
        self.numbers = numbers

    def diagnosis(self) -> dict[str, Tensor]:
        return {name: torch.tensor(value) for name, value in self.numbers.items()}


def test_is_the_largest_of_each_number_over_the_layers():
    model = nn.Sequential(Diagnosed(rest=0.5, gap=1.0), nn.Sequential(Diagnosed(rest=0.75)), Diagnosed(rest=0.25))
    assert worst_diagnoses(model) == {"rest": 0.75, "gap": 1.0}


def test_is_empty_where_no_layer_diagnoses_itself():
    assert worst_diagnoses(nn.Sequential(nn.Linear(2, 2), BatchNorm(2))) == {}


@pytest.mark.parametrize("order", [1, -1])
def test_what_is_not_finite_is_the_worst(order):
    numbers = [math.inf, 0.5][::order]
    assert worst_diagnoses(nn.Sequential(*(Diagnosed(rest=x) for x in numbers))) == {"rest": math.inf}
    numbers = [math.nan, math.inf][::order]
    assert math.isnan(worst_diagnoses(nn.Sequential(*(Diagnosed(rest=x) for x in numbers)))["rest"])
