"""Recomputed running statistics against the moments of all values put together."""

import pytest
import torch
from torch import nn

from normcore.build import build_model
from normcore.noise.noise import Noise
from normcore.norms.batch import BatchNorm
from normcore.recurrent.batch_lstm import BatchLstmCell
from normcore.recurrent.lstm import Lstm
from normcore.spec import JobSpec
from normcore.statistics.recompute import recompute_statistics, recomputed_statistics


def vgg(precision="float32", noise="santurkar"):
    model = {"kind": "vgg", "width": 0.0625}
    spec = {"model": model, "data": {"kind": "digits"}, "noise": {"kind": noise}, "precision": precision}
    return build_model(JobSpec.model_validate(spec))


def batches_of(sizes, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(size, 1, 32, 32, generator=generator, dtype=dtype) * (1 + size) for size in sizes]


def statistics_of(model):
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


@pytest.mark.parametrize("sizes", [(8,), (8, 8, 8), (2, 16, 5)], ids=str)
def test_they_are_the_moments_of_all_values_of_all_batches_together(sizes):
    model, batches = vgg("float64"), batches_of(sizes, torch.float64)
    norms = {name: module for name, module in model.named_modules() if isinstance(module, BatchNorm)}
    seen = {name: [] for name in norms}
    quiet = vgg("float64", noise="none")
    quiet.load_state_dict(model.state_dict())
    for name in norms:
        quiet.get_submodule(name).register_forward_pre_hook(lambda _, x, name=name: seen[name].append(x[0]))
    with torch.no_grad():
        for batch in batches:
            quiet(batch)
    with recomputed_statistics(model, batches):
        for name, norm in norms.items():
            values = torch.cat(seen[name]).transpose(0, 1).flatten(1)
            torch.testing.assert_close(norm.running_mean, values.mean(1), rtol=1e-10, atol=1e-12)
            torch.testing.assert_close(norm.running_var, values.var(1, correction=0), rtol=1e-10, atol=1e-12)


def test_in_evaluation_each_layer_of_a_single_batch_is_as_in_training():
    model, (batch,) = vgg("float64", noise="none"), batches_of((16,), torch.float64)
    expected = model(batch)
    with recomputed_statistics(model, [batch]), torch.no_grad():
        torch.testing.assert_close(model.eval()(batch), expected, rtol=1e-9, atol=1e-9)


def test_the_model_is_left_as_it_was():
    model = vgg()
    model.blocks[0].eval()
    before, modes = statistics_of(model), [module.training for module in model.modules()]
    seeds = [module.step_seed for module in model.modules() if isinstance(module, Noise)]
    with recomputed_statistics(model, batches_of((4, 4))):
        assert not torch.equal(model.blocks[1].norm.running_mean, before["blocks.1.norm.running_mean"])
    after = statistics_of(model)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert [module.training for module in model.modules()] == modes
    assert [module.step_seed for module in model.modules() if isinstance(module, Noise)] == seeds
    assert all(not module._forward_pre_hooks for module in model.modules())


def test_a_model_without_running_statistics_is_passed_through():
    model = torch.nn.Linear(2, 2)
    with recomputed_statistics(model, [torch.ones(1, 2)]):
        assert model.weight.shape == (2, 2)


def values_of(model, path, batches, infer=None):
    """What a layer is given in training, batch by batch, as one row per channel."""
    seen = []
    handle = model.get_submodule(path).register_forward_pre_hook(
        lambda _, x: seen.append(x[0].detach().transpose(0, 1).flatten(1).double())
    )
    model.train()
    with torch.no_grad():
        for batch in batches:
            (infer or model)(batch)
    handle.remove()
    return seen


def twin(values, estimator, momentum):
    """Every estimate as its definition says it."""
    means = [v.sum(1) / v.shape[1] for v in values]
    unbiased = [((v - m[:, None]) ** 2).sum(1) / (v.shape[1] - 1) for v, m in zip(values, means, strict=True)]
    if estimator == "population":
        together = torch.cat(values, 1)
        mean = together.sum(1) / together.shape[1]
        return mean, ((together - mean[:, None]) ** 2).sum(1) / together.shape[1]
    weights = [1.0] * len(values)
    if estimator == "ema":
        weights = [(1 - momentum) ** (len(values) - 1 - b) for b in range(len(values))]
    return tuple(
        sum(w * s for w, s in zip(weights, statistics, strict=True)) / sum(weights) for statistics in (means, unbiased)
    )


@pytest.mark.parametrize("estimator", ["ema", "paper", "population"])
def test_each_estimate_is_its_definition_on_torchs_own_layers_too(estimator):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 2), nn.BatchNorm2d(3, momentum=0.3), nn.Tanh(), nn.Flatten(), nn.Linear(27, 4)
    )
    model.append(nn.BatchNorm1d(4, momentum=0.2)).double()
    batches = [step + (1 + step) * torch.randn(size, 1, 4, 4).double() for step, size in enumerate((2, 7, 3))]
    expected = {path: twin(values_of(model, path, batches), estimator, m) for path, m in (("1", 0.3), ("5", 0.2))}
    model.eval()
    counts = [int(model[index].num_batches_tracked) for index in (1, 5)]
    done = recompute_statistics(model, batches, estimator=estimator)
    assert (done.layers, done.unseen, done.unknown) == (("1", "5"), (), ())
    for path, (mean, var) in expected.items():
        layer = model.get_submodule(path)
        torch.testing.assert_close(layer.running_mean, mean, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(layer.running_var, var, rtol=1e-10, atol=1e-12)
    assert [int(model[index].num_batches_tracked) for index in (1, 5)] == counts
    assert not any(module.training for module in model.modules())


def test_paper_is_what_torchs_update_bn_computes():
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).double()
    theirs = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).double()
    theirs.load_state_dict(ours.state_dict())
    batches = [step + torch.randn(5 + step, 3).double() for step in range(4)]
    recompute_statistics(ours, batches, estimator="paper")
    torch.optim.swa_utils.update_bn(batches, theirs)
    torch.testing.assert_close(ours[1].running_mean, theirs[1].running_mean)
    torch.testing.assert_close(ours[1].running_var, theirs[1].running_var)


@pytest.mark.parametrize("estimator", ["ema", "paper", "population"])
def test_what_a_layer_gathers_by_itself_is_what_is_computed_anew(estimator):
    """The layer's `ema` has a trace of where it began, which goes away with the batches."""
    norm = BatchNorm(3, momentum=0.5, estimator=estimator, dtype=torch.float64)
    batches = [
        step % 3 + torch.randn(2 + step % 4, 3, 2, generator=torch.Generator().manual_seed(step)).double()
        for step in range(60)
    ]
    for batch in batches:
        norm(batch)
    gathered = norm.running_mean.clone(), norm.running_var.clone()
    norm.reset_statistics()
    assert (norm.momentum is None) == (estimator != "ema")
    recompute_statistics(norm, batches, estimator=estimator)
    torch.testing.assert_close((norm.running_mean, norm.running_var), gathered, rtol=1e-12, atol=1e-12)


def test_a_layer_that_is_used_twice_has_the_statistics_of_both_uses():
    norm = nn.BatchNorm1d(2).double()
    model = nn.Sequential(norm, nn.Tanh(), norm)
    batches = [torch.randn(4, 2).double(), 3 * torch.randn(9, 2).double()]
    mean, var = twin(values_of(model, "0", batches), "population", None)
    assert recompute_statistics(model, batches).layers == ("0",)
    torch.testing.assert_close(norm.running_mean, mean)
    torch.testing.assert_close(norm.running_var, var)


class Odd(nn.Module):
    """Keeps something that training moves."""

    def __init__(self, name):
        super().__init__()
        self.register_buffer(name, torch.zeros(2))
        self.name = name

    def forward(self, x):
        if self.training:
            self.get_buffer(self.name).add_(x.mean(0))
        return x - self.get_buffer(self.name)


class Aside(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.BatchNorm1d(2), nn.BatchNorm1d(2)

    def forward(self, x):
        return self.used(x)


def test_what_is_unknown_or_was_not_reached_is_told_and_keeps_its_statistics():
    model = nn.Sequential(Aside(), Odd("running_what"), Odd("memory"), nn.InstanceNorm1d(2, track_running_stats=True))
    model[3].forward = lambda x: x
    done = recompute_statistics(model, [1 + torch.randn(5, 2)])
    assert (done.layers, done.unseen, done.unknown) == (("0.used",), ("0.unused",), ("1", "2", "3"))
    assert model[0].unused.running_var.tolist() == [1.0, 1.0]
    assert model[1].running_what.tolist() == model[2].memory.tolist() == [0.0, 0.0]


def test_batches_of_a_loader_are_run_without_their_labels():
    model = nn.Sequential(nn.BatchNorm1d(2))
    x = torch.randn(8, 2)
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, torch.arange(8)), batch_size=4)
    recompute_statistics(model, data)
    torch.testing.assert_close(model[0].running_mean, x.mean(0))


def test_a_mask_is_heeded():
    norm, mask = BatchNorm(2), torch.tensor([[True, False], [True, True]])
    x = torch.randn(2, 2, 2)
    recompute_statistics(norm, [x], infer=lambda x: norm(x, mask=mask))
    torch.testing.assert_close(norm.running_mean, x.transpose(0, 1)[:, mask].mean(1))


def test_recomputing_for_good_leaves_everything_else_alone():
    model, batches = vgg(noise="none"), batches_of((4, 4))
    model(batches[0]).sum().backward()
    model.blocks[0].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    gradients, modes = [p.grad for p in model.parameters()], [module.training for module in model.modules()]
    random = torch.get_rng_state()
    recompute_statistics(model, batches)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if "running_" in name}
    assert all(p.grad is gradient for p, gradient in zip(model.parameters(), gradients, strict=True))
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize("estimator", ["paper", "population"])
def test_statistics_of_each_time_step_are_gathered_by_their_layers_for_sequences_of_any_length(estimator):
    torch.manual_seed(0)
    lstm = Lstm(BatchLstmCell(3, 4, max_length=6, dtype=torch.float64))
    batches = [torch.randn(size, length, 3).double() for size, length in ((5, 6), (8, 4))]
    norm, given = lstm.cell.norm_x, []
    handle = norm.register_forward_pre_hook(lambda _, x: given.append(x[0].detach()))
    for batch in batches:
        lstm(batch)
    handle.remove()
    before = norm.num_batches_tracked.clone()
    with recomputed_statistics(lstm, batches, estimator=estimator) as done:
        assert (set(done.layers), done.unknown) == ({"cell.norm_h", "cell.norm_x", "cell.norm_c"}, ())
        assert norm.num_batches_tracked.tolist() == [2, 2, 2, 2, 1, 1]
        inside = norm.running_mean.clone()
    for time in range(6):
        here = [x[:, time] for x in given if x.shape[1] > time]
        parts = here if estimator == "paper" else [torch.cat(here)]
        torch.testing.assert_close(inside[time], sum(part.mean(0) for part in parts) / len(parts))
    assert norm.estimator == "ema"
    assert torch.equal(norm.num_batches_tracked, before)
    assert not torch.equal(norm.running_mean, inside)
    recompute_statistics(lstm, batches, estimator=estimator)
    assert torch.equal(norm.running_mean, inside)


def test_a_batch_of_padding_alone_counts_for_nothing():
    norm, x = BatchNorm(2), torch.randn(3, 2, 4)
    some, none = torch.ones(3, 4, dtype=torch.bool), torch.zeros(3, 4, dtype=torch.bool)
    for estimator in ("ema", "paper", "population"):
        recompute_statistics(norm, [some, none], estimator=estimator, infer=lambda mask: norm(x, mask))
        torch.testing.assert_close(norm.running_mean, x.mean((0, 2)))
    assert recompute_statistics(norm, [none], infer=lambda mask: norm(x, mask)).unseen == ("",)
    torch.testing.assert_close(norm.running_mean, x.mean((0, 2)))
