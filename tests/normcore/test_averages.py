"""An average along a training, against the sum it is."""

import pytest
import torch
from torch import nn

from normcore.averages import Averages
from normcore.norms.batch import BatchNorm


def test_it_is_the_weighted_sum_of_what_updates_left_behind():
    model, decay = nn.Sequential(nn.Linear(3, 2), BatchNorm(2)).double(), 0.7
    averages = Averages(model, decay)
    averages.begin()
    seen = []
    for number in range(5):
        with torch.no_grad():
            for tensor in (*model.parameters(), model[1].running_mean, model[1].running_var):
                tensor.uniform_(0.5, 2.0)
        skipped = number == 2
        averages.advance(unless=torch.tensor(float(skipped)))
        if not skipped:
            seen.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
    scales = [decay ** (len(seen) - 1 - i) for i in range(len(seen))]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with averages.in_place(model):
        for name, tensor in model.state_dict().items():
            if name != "1.num_batches_tracked":
                expected = sum(s * state[name] for s, state in zip(scales, seen, strict=True)) / sum(scales)
                torch.testing.assert_close(tensor, expected, rtol=1e-12, atol=0)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_decay_of_zero_is_the_newest_model_and_none_made_is_the_first():
    model = nn.Linear(2, 2)
    averages = Averages(model, 0.0)
    first = model.weight.detach().clone()
    nn.init.ones_(model.weight)
    averages.advance(unless=torch.ones(()))
    with averages.in_place(model):
        assert torch.equal(model.weight, first)
    averages.advance(unless=torch.zeros(()))
    with averages.in_place(model):
        torch.testing.assert_close(model.weight.detach(), torch.ones(2, 2))


@pytest.mark.parametrize(("dtype", "kept"), [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)])
def test_it_is_kept_in_float32_or_better(dtype, kept):
    state = Averages(nn.Linear(2, 2).to(dtype), 0.5).state()
    assert state["weight"].dtype == kept
