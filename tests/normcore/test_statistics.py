"""Recomputed running statistics against the moments of all values put together."""

import pytest
import torch

from normcore.build import build_model
from normcore.noise.noise import Noise
from normcore.norms.batch import BatchNorm
from normcore.spec import JobSpec
from normcore.statistics import recomputed_statistics


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
    with recomputed_statistics(model, model, batches):
        for name, norm in norms.items():
            values = torch.cat(seen[name]).transpose(0, 1).flatten(1)
            torch.testing.assert_close(norm.running_mean, values.mean(1), rtol=1e-10, atol=1e-12)
            torch.testing.assert_close(norm.running_var, values.var(1, correction=0), rtol=1e-10, atol=1e-12)


def test_in_evaluation_each_layer_of_a_single_batch_is_as_in_training():
    model, (batch,) = vgg("float64", noise="none"), batches_of((16,), torch.float64)
    expected = model(batch)
    with recomputed_statistics(model, model, [batch]), torch.no_grad():
        torch.testing.assert_close(model.eval()(batch), expected, rtol=1e-9, atol=1e-9)


def test_the_model_is_left_as_it_was():
    model = vgg()
    model.blocks[0].eval()
    before, modes = statistics_of(model), [module.training for module in model.modules()]
    seeds = [module.step_seed for module in model.modules() if isinstance(module, Noise)]
    with recomputed_statistics(model, model, batches_of((4, 4))):
        assert not torch.equal(model.blocks[1].norm.running_mean, before["blocks.1.norm.running_mean"])
    after = statistics_of(model)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert [module.training for module in model.modules()] == modes
    assert [module.step_seed for module in model.modules() if isinstance(module, Noise)] == seeds
    assert all(not module._forward_pre_hooks for module in model.modules())


def test_a_model_without_running_statistics_is_passed_through():
    model = torch.nn.Linear(2, 2)
    with recomputed_statistics(model, model, [torch.ones(1, 2)]):
        assert model.weight.shape == (2, 2)
