import copy
import math

import pytest
import torch
from torch import nn

from normcore.build import build_model
from normcore.models.block import Site, block
from normcore.models.dropout import Dropout
from normcore.noise.noise import start_step
from normcore.noise.none import NoNoise
from normcore.noise.santurkar import SanturkarNoise
from normcore.norms.batch import BatchNorm
from normcore.norms.none import NoNorm
from normcore.preview import preview
from normcore.records import Metrics
from normcore.spec import JobSpec
from normcore.statistics.recompute import recompute_statistics
from normcore.surgery.fold import fold
from normcore.train import train

SMALL = {"mlp": {"hidden": [6, 4]}, "vgg": {"width": 0.0625}, "resnet": {"depth": 8}, "plain": {"depth": 8}}


def job(model: str, dropout: float, **parts: object) -> JobSpec:
    small = {"kind": model, "dropout": dropout, **SMALL[model]}
    return JobSpec.model_validate({"model": small, "data": {"kind": "digits"}, **parts})


def drop(dropout: nn.Module, x: torch.Tensor, step: int = 0) -> torch.Tensor:
    start_step(dropout, 0, step)
    return dropout(x)


def test_mean_and_variance_are_those_of_scaled_bernoulli_factors():
    n, p = 400_000, 0.3
    x = 2 + torch.randn(n, 1, dtype=torch.float64)
    y = drop(Dropout(p), x)
    assert set((y / x).unique().round(decimals=9).tolist()) == {0.0, round(1 / (1 - p), 9)}
    # Six standard errors.
    assert abs((y == 0).double().mean() - p) < 6 * math.sqrt(p * (1 - p) / n)
    variance = (x.var() + p * x.mean() ** 2) / (1 - p)
    torch.testing.assert_close(y.mean(), x.mean(), rtol=0, atol=6 * math.sqrt(variance / n))
    torch.testing.assert_close(y.var(), variance, rtol=0.02, atol=0)


def test_values_are_dropped_independently_in_every_direction():
    dropped = (drop(Dropout(0.5), torch.ones(64, 16, 8, 8)) == 0).double() - 0.5
    for dim in range(4):
        correlation = 4 * (dropped * dropped.roll(1, dim)).mean()
        assert abs(correlation) < 6 / math.sqrt(dropped.numel())


def test_a_step_drops_the_same_again_and_another_others_whoever_draws_between():
    dropout, x = Dropout(0.5), torch.ones(50, 40)
    first = drop(dropout, x, step=3)
    state = torch.get_rng_state()
    assert torch.equal(dropout(x), first)
    assert torch.equal(copy.deepcopy(dropout)(x), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(drop(dropout, x, step=4), first)
    pair = nn.ModuleList([Dropout(0.5), Dropout(0.5)])
    start_step(pair, 0, 3)
    assert torch.equal(pair[0](x), first)
    assert not torch.equal(pair[1](x), first)


def test_noise_and_dropout_leave_each_others_draws_alone():
    x = torch.ones(20, 6)
    site = {"norm": NoNorm, "activation": "tanh"}
    both = block(("linear", nn.Identity()), 6, Site(noise=SanturkarNoise, dropout=0.5, **site))
    silent = block(("linear", nn.Identity()), 6, Site(noise=NoNoise, dropout=0.5, **site))
    assert torch.equal(drop(both, x) == 0, drop(silent, x) == 0)


def test_it_is_the_identity_in_evaluation_and_must_know_its_step_in_training():
    dropout, x = Dropout(0.5), torch.ones(3, 4)
    assert dropout.step_seed is None
    with pytest.raises(RuntimeError, match="dropout in training must know its step, got none; call"):
        dropout(x)
    assert dropout.eval()(x) is x


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_all_precisions_drop_the_same_values_and_are_rounded_once(dtype):
    x = torch.randn(30, 20).to(dtype)
    y = drop(Dropout(0.1), x)
    assert y.dtype == dtype
    exact = drop(Dropout(0.1), x.double())
    assert torch.equal(y, exact.to(dtype))


def test_memory_format_is_kept():
    x = torch.ones(4, 6, 5, 5).to(memory_format=torch.channels_last)
    y = drop(Dropout(0.5), x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert 0.3 < (y == 0).double().mean() < 0.7
    assert drop(Dropout(0.5), torch.ones(4, 5, 6)).is_contiguous()


def test_gradients_go_where_values_went():
    x = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    dropout = Dropout(0.4)
    y = drop(dropout, x)
    y.sum().backward()
    torch.testing.assert_close(x.grad, (y / x).detach())
    assert torch.autograd.gradcheck(dropout, x)
    assert torch.autograd.gradgradcheck(dropout, x)


def test_compiles_into_one_graph_that_serves_every_step():
    net, x = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), Dropout(0.5)), torch.randn(5, 3)
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    for step in range(3):
        start_step(net, 0, step)
        with torch.compiler.set_stance("default" if step == 0 else "fail_on_recompile"):
            assert torch.equal(compiled(x), net(x))


def test_meta_tensors_need_no_step():
    x = torch.empty(2, 3, 4, 4, device="meta").to(memory_format=torch.channels_last)
    assert Dropout(0.5)(x).shape == x.shape


@pytest.mark.parametrize("model", list(SMALL))
def test_without_dropout_there_is_no_layer_for_it_and_with_it_the_parameters_are_the_same(model):
    without, having = build_model(job(model, 0.0)), build_model(job(model, 0.5))
    assert not any(isinstance(module, Dropout) for module in without.modules())
    ours, theirs = having.state_dict(), without.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


@pytest.mark.parametrize(
    ("model", "places"),
    [
        ("mlp", ["blocks.0", "blocks.1"]),
        ("vgg", [f"blocks.{number}" for number in range(8)]),
        ("resnet", [f"blocks.{number}.branch.0" for number in range(3)]),
        ("plain", [f"blocks.{number}.branch.0" for number in range(3)]),
    ],
)
def test_it_stands_after_the_activation_of_a_block_and_in_branches_between_the_convolutions(model, places):
    net = build_model(job(model, 0.5), device="meta")
    paths = [path for path, module in net.named_modules() if isinstance(module, Dropout)]
    assert paths == [f"{place}.dropout" for place in places]
    for place in places:
        names = [name for name, _ in net.get_submodule(place).named_children()]
        assert names[names.index("dropout") - 1] == "activation"


def test_statistics_are_recomputed_without_it_unless_it_is_asked_for():
    """Li et al. 2018: behind dropout training meets the variance (v + p m^2) / (1 - p), and evaluation v."""
    p, x = 0.5, 3 + torch.randn(4000, 2, dtype=torch.float64)
    model = nn.Sequential(Dropout(p), BatchNorm(2, dtype=torch.float64))
    start_step(model, 0, 0)
    recompute_statistics(model, [x])
    torch.testing.assert_close(model[1].running_var, x.var(0, correction=0))
    recompute_statistics(model, [x], noise=True)
    torch.testing.assert_close(model[1].running_var, (x.var(0) + p * x.mean(0) ** 2) / (1 - p), rtol=0.05, atol=0)
    assert model[0].training


def test_folding_steps_over_it():
    net = nn.Sequential(nn.Linear(3, 4), Dropout(0.5), BatchNorm(4)).eval()
    net[2].running_mean.uniform_(-1, 1)
    x = torch.randn(5, 3)
    folding = fold(net)
    assert not any(isinstance(module, BatchNorm) for module in folding.model.modules())
    torch.testing.assert_close(folding.model(x), net(x))


def test_the_preview_runs_no_draws_and_a_job_trains_with_it_deterministically():
    spec = job("mlp", 0.25, steps=6, batch_size=16, deterministic=True, evaluate_every=6)
    seen = preview(spec)
    assert not seen.reasons
    assert seen.num_parameters == preview(job("mlp", 0.0)).num_parameters

    def points(spec: JobSpec) -> dict[tuple[str, int], float]:
        return {
            (p.key, p.step): p.value
            for record in train(spec)
            if isinstance(record, Metrics)
            for p in record.points
            if p.key.startswith(("train/loss", "test/"))
        }

    one = points(spec)
    assert one == points(spec)
    assert any(key.endswith("_recomputed") for key, _ in one)
    assert one != points(job("mlp", 0.0, steps=6, batch_size=16, deterministic=True, evaluate_every=6))


@pytest.mark.parametrize("p", [-0.1, 1.0])
def test_probabilities_are_below_one(p):
    with pytest.raises(ValueError, match="dropout"):
        job("mlp", p)


def test_arms_with_and_without_it_have_other_names():
    assert job("mlp", 0.5).name != job("mlp", 0.0).name
