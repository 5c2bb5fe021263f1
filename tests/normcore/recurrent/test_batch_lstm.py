"""Against equations 6 to 8 of Cooijmans et al. 2017, one time step and one value at a time."""

import pytest
import torch
from torch import Tensor, nn

from normcore.recurrent.batch_lstm import BatchLstmCell
from normcore.recurrent.lstm import Lstm
from normcore.recurrent.lstm_cell import LstmCell
from normcore.statistics import freeze_statistics, recompute_statistics, train_eval_gap

N, T, D, H, EPS = 4, 5, 2, 3, 1e-3
DRAWS = torch.Generator().manual_seed(0)
X = torch.randn(N, T, D, generator=DRAWS, dtype=torch.float64)
LENGTHS = torch.tensor([5, 2, 4, 5])


def cell(max_length: int = T) -> BatchLstmCell:
    made = BatchLstmCell(D, H, max_length=max_length, eps=EPS, dtype=torch.float64)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=DRAWS, dtype=torch.float64))
    return made


class Twin:
    """The paper's equations, and its averages of the batches' statistics in torch's convention."""

    def __init__(self, model: BatchLstmCell) -> None:
        self.p = dict(model.named_parameters())
        self.running: dict[tuple[str, int, int], tuple[Tensor, Tensor]] = {}

    def batch_norm(self, name: str, a: Tensor, time: int, samples: list[int], training: bool) -> Tensor:
        out = torch.zeros_like(a)
        for j in range(a.shape[1]):
            old_mean, old_var = self.running.get((name, time, j), (torch.tensor(0.0), torch.tensor(1.0)))
            mean, var = old_mean, old_var
            if training:
                values = [a[n, j] for n in samples]
                mean = sum(values) / len(values)
                squares = sum((value - mean) ** 2 for value in values)
                var = squares / len(values)
                new_var = squares / (len(values) - 1)
                self.running[name, time, j] = (
                    0.9 * old_mean + 0.1 * mean.detach(),
                    0.9 * old_var + 0.1 * new_var.detach(),
                )
            out[:, j] = self.p[f"{name}.weight"][j] * (a[:, j] - mean) / (var + EPS) ** 0.5
        return out

    def __call__(self, x: Tensor, lengths: Tensor, training: bool) -> Tensor:
        h, c = torch.zeros(N, H, dtype=torch.float64), torch.zeros(N, H, dtype=torch.float64)
        outputs = torch.zeros(N, T, H, dtype=torch.float64)
        for t in range(T):
            samples = [n for n in range(N) if t < lengths[n]]
            a = self.batch_norm("norm_h", h @ self.p["weight_hh"].T, t, samples, training)
            a = a + self.batch_norm("norm_x", x[:, t] @ self.p["weight_ih"].T, t, samples, training) + self.p["bias"]
            i, f, g, o = a[:, :H], a[:, H : 2 * H], a[:, 2 * H : 3 * H], a[:, 3 * H :]
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * (self.batch_norm("norm_c", c, t, samples, training) + self.p["norm_c.bias"]).tanh()
            for n in samples:
                outputs[n, t] = h[n]
        return outputs


@pytest.mark.parametrize("lengths", [torch.full((N,), T), LENGTHS])
def test_equals_the_papers_equations_in_training_and_evaluation(lengths):
    model = cell()
    ours, twin = Lstm(model), Twin(model)
    for x in (X, 2 * X + 1):
        torch.testing.assert_close(ours(x, lengths)[0], twin(x, lengths, training=True))
    ours.eval()
    torch.testing.assert_close(ours(X, lengths)[0], twin(X, lengths, training=False))


def test_with_frozen_unit_statistics_it_is_the_plain_lstm():
    """Mean 0, variance 1 - eps, gamma 1: every norm is the identity."""
    normed, plain = BatchLstmCell(D, H, max_length=2, dtype=torch.float64), LstmCell(D, H, dtype=torch.float64)
    for norm in (normed.norm_h, normed.norm_x, normed.norm_c):
        norm.running_var.fill_(1 - norm.eps)
        nn.init.ones_(norm.weight)
    torch.testing.assert_close(Lstm(normed).eval()(X, LENGTHS), Lstm(plain)(X, LENGTHS))


def test_evaluation_beyond_t_max_reuses_its_statistics():
    short = Lstm(cell(max_length=3))
    short(X[:, :3])
    long = Lstm(cell(max_length=T))
    long.load_state_dict({**long.state_dict(), **{k: v for k, v in short.state_dict().items() if "norm" not in k}})
    for kind in ("norm_h", "norm_x", "norm_c"):
        ours, theirs = long.cell.get_submodule(kind), short.cell.get_submodule(kind)
        with torch.no_grad():
            ours.weight.copy_(theirs.weight)
            if ours.bias is not None:
                ours.bias.copy_(theirs.bias)
        times = [0, 1, 2, 2, 2]
        ours.running_mean.copy_(theirs.running_mean[times])
        ours.running_var.copy_(theirs.running_var[times])
        ours.num_batches_tracked.fill_(1)
    torch.testing.assert_close(short.eval()(X)[0], long.eval()(X)[0])


def test_starts_as_in_the_paper():
    model = BatchLstmCell(D, H, max_length=T)
    assert {name: parameter.unique().tolist() for name, parameter in model.named_parameters() if "norm" in name} == {
        "norm_h.weight": [pytest.approx(0.1)],
        "norm_x.weight": [pytest.approx(0.1)],
        "norm_c.weight": [pytest.approx(0.1)],
        "norm_c.bias": [0.0],
    }


def test_statistics_are_each_time_steps_own_and_scales_are_shared():
    model = cell()
    Lstm(model)(X)
    assert model.norm_h.running_mean.shape == (T, 4 * H)
    assert model.norm_c.running_var.shape == (T, H)
    assert len(model.norm_c.running_var.unique(dim=0)) == T
    assert model.norm_h.weight.shape == (4 * H,)


def test_the_statistics_of_time_steps_can_be_compared_recomputed_and_frozen():
    model = Lstm(cell())
    model(X)
    before = {gap.layer: gap.output for gap in train_eval_gap(model, X)}
    assert list(before) == ["cell.norm_h", "cell.norm_x", "cell.norm_c"]
    assert recompute_statistics(model, [X]).unknown == ()
    after = {gap.layer: gap.output for gap in train_eval_gap(model, X)}
    assert all(after[layer] < 0.1 < before[layer] for layer in before)
    with freeze_statistics(model):
        torch.testing.assert_close(model(X[:1])[0], model(X)[0][:1])
