"""Against the equations of Ba et al. 2016, supplementary material, one sample and one time step at a time."""

import pytest
import torch
from torch import Tensor, nn

from normcore.recurrent.layer_lstm import LayerLstmCell
from normcore.recurrent.lstm import Lstm
from normcore.refusal import Refusal

H, EPS = 4, 1e-3
DRAWS = torch.Generator().manual_seed(0)
X = torch.randn(3, 5, 2, generator=DRAWS, dtype=torch.float64)


def cell() -> LayerLstmCell:
    made = LayerLstmCell(2, H, eps=EPS, dtype=torch.float64)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=DRAWS, dtype=torch.float64))
    return made


def layer_norm(a: Tensor, gamma: Tensor) -> Tensor:
    mean = sum(a) / len(a)
    var = sum((value - mean) ** 2 for value in a) / len(a)
    return gamma * (a - mean) / (var + EPS) ** 0.5


def twin(model: LayerLstmCell, x: Tensor) -> Tensor:
    """The h of one sequence `(T, D)`."""
    p = dict(model.named_parameters())
    h, c, outputs = torch.zeros(H, dtype=torch.float64), torch.zeros(H, dtype=torch.float64), []
    for x_t in x:
        a = layer_norm(p["weight_hh"] @ h, p["norm_h.weight"]) + layer_norm(p["weight_ih"] @ x_t, p["norm_x.weight"])
        i, f, g, o = (a + p["bias"]).view(4, H)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * (layer_norm(c, p["norm_c.weight"]) + p["norm_c.bias"]).tanh()
        outputs.append(h)
    return torch.stack(outputs)


def test_equals_the_papers_equations():
    model = cell()
    torch.testing.assert_close(Lstm(model)(X)[0], torch.stack([twin(model, x) for x in X]))


def test_learns_a_scale_for_each_norm_and_a_shift_for_that_of_c():
    norms = [name for name, _ in LayerLstmCell(2, H).named_parameters() if name.startswith("norm")]
    assert norms == ["norm_h.weight", "norm_x.weight", "norm_c.weight", "norm_c.bias"]
    assert not list(LayerLstmCell(2, H).buffers())


def test_neither_the_scale_of_a_weight_nor_that_of_an_input_matters():
    """Ba et al. 2016, table 1: invariant to re-scaling of the weight matrix and of a single sample."""
    model, scaled = (
        LayerLstmCell(2, H, eps=1e-30, dtype=torch.float64),
        LayerLstmCell(2, H, eps=1e-30, dtype=torch.float64),
    )
    nn.init.constant_(model.bias, 0.1)
    nn.init.constant_(scaled.bias, 0.1)
    with torch.no_grad():
        scaled.weight_ih.mul_(7)
        scaled.weight_hh.mul_(0.2)
    scale = torch.tensor([1.0, 30.0, 0.01], dtype=torch.float64).view(3, 1, 1)
    torch.testing.assert_close(Lstm(scaled)(scale * X)[0], Lstm(model)(X)[0])


def test_a_single_hidden_value_is_refused():
    with pytest.raises(Refusal, match="more than one value in a sample, got 1; take a larger hidden_size"):
        LayerLstmCell(2, 1)
