from functools import partial
from typing import Any

import pytest
import torch

from normcore.build import build_model
from normcore.cost import flops_per_step
from normcore.data.batch import Batch
from normcore.data.shaped import shaped
from normcore.models.transformer import Transformer
from normcore.noise.noise import start_step
from normcore.noise.none import NoNoise
from normcore.noise.santurkar import SanturkarNoise
from normcore.norms.batch import BatchNorm
from normcore.norms.group import GroupNorm
from normcore.norms.instance import InstanceNorm
from normcore.norms.layer import LayerNorm
from normcore.norms.layer_channels import LayerNormChannels
from normcore.norms.power import PowerNorm
from normcore.norms.rms import RmsNorm
from normcore.records import Metrics
from normcore.refusal import Refusal
from normcore.spec import JobSpec
from normcore.train import train

DOUBLE = torch.float64


def made(norm: Any, noise: Any = NoNoise, **knobs: Any) -> Transformer:
    small = {"vocabulary": 9, "depth": 2, "width": 8, "heads": 2} | knobs
    return Transformer((12,), 3, norm=partial(norm, dtype=DOUBLE), noise=noise, seed=0, dtype=DOUBLE, **small)


SHORT = torch.tensor([[1, 2, 3, 4, 5, 6, 7], [3, 4, 0, 0, 0, 0, 0]])


@pytest.mark.parametrize("placement", ["pre", "post"])
@pytest.mark.parametrize(
    "norm", [BatchNorm, LayerNorm, LayerNormChannels, PowerNorm, RmsNorm, partial(GroupNorm, num_groups=2)]
)
def test_padding_has_no_influence(norm, placement):
    longer = torch.nn.functional.pad(SHORT, (0, 5))
    model, twin = made(norm, norm_placement=placement), made(norm, norm_placement=placement)
    torch.testing.assert_close(model(longer), twin(SHORT), rtol=0, atol=1e-12)
    filled = torch.where(longer == 0, 8, longer)
    twin = made(norm, norm_placement=placement)
    torch.testing.assert_close(
        twin(filled, longer != 0), made(norm, norm_placement=placement)(SHORT), rtol=0, atol=1e-12
    )


def test_noise_of_padding_does_not_reach_real_tokens():
    model = made(LayerNorm, partial(SanturkarNoise))
    logits = []
    for filler in (0, 8):
        start_step(model, 0, 0)
        logits.append(model(torch.where(SHORT == 0, filler, SHORT), SHORT != 0))
    torch.testing.assert_close(logits[0], logits[1], rtol=0, atol=1e-12)
    assert (logits[0] - model.eval()(SHORT)).abs().max() > 1e-3


def test_a_norm_that_would_see_padding_is_refused_on_tokens_alone():
    with pytest.raises(Refusal, match="InstanceNorm, which mixes tokens of a sample and takes no mask"):
        made(InstanceNorm)


def test_it_is_differentiable_twice_and_every_parameter_learns():
    model = made(LayerNormChannels)
    gradients = torch.autograd.grad(model(SHORT).square().sum(), list(model.parameters()), create_graph=True)
    sum(gradient.square().sum() for gradient in gradients).backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


def test_pre_norm_ends_in_a_norm_and_post_norm_does_not_need_one():
    assert len([m for m in made(BatchNorm).modules() if isinstance(m, BatchNorm)]) == 5
    assert len([m for m in made(BatchNorm, norm_placement="post").modules() if isinstance(m, BatchNorm)]) == 4


def job(arrange: str, model: dict[str, Any], **parts: Any) -> JobSpec:
    data = {"kind": "digits", "arrange": arrange} | ({} if arrange == "tokens" else {"size": 8})
    return JobSpec.model_validate({"model": model, "data": data, "norm": {"kind": "batch"}} | parts)


SMALL = {"kind": "transformer", "depth": 1, "width": 16, "heads": 2}
LSTM = {"kind": "lstm", "hidden": 16}


@pytest.mark.parametrize(
    ("arrange", "model"),
    [("images", SMALL), ("rows", SMALL), ("tokens", SMALL), ("rows", LSTM), ("tokens", LSTM)],
)
def test_flops_are_those_that_torch_counts(arrange, model):
    from torch.utils.flop_counter import FlopCounterMode

    spec = job(arrange, model, norm={"kind": "none"})
    x = torch.randint(1, 9, (3, *spec.data.shape)) if arrange == "tokens" else torch.randn(3, *spec.data.shape)
    with FlopCounterMode(display=False) as counter:
        Batch(x, torch.zeros(3), x > 0 if arrange == "tokens" else None).through(build_model(spec)).sum().backward()
    batch = shaped(spec.data, 3, torch.float32)
    assert flops_per_step(build_model(spec, device="meta"), batch) == counter.get_total_flops()


def test_flops_of_attention_in_closed_form():
    n, length, width, hidden = 3, 8, 16, 32
    maps = 2 * n * length * (width * 3 * width + width * width + 2 * width * hidden)
    attention = 2 * (2 * n * length * length * width)
    embedding, classifier = 2 * n * length * 8 * width, 2 * n * width * 10
    spec = job("rows", SMALL, norm={"kind": "none"})
    expected = 3 * (maps + attention + classifier) + 2 * embedding
    assert flops_per_step(build_model(spec, device="meta"), shaped(spec.data, n, torch.float32)) == expected


@pytest.mark.parametrize(("arrange", "model"), [("images", SMALL), ("rows", SMALL), ("rows", LSTM)])
def test_it_learns(arrange, model):
    spec = job(arrange, model, optimizer={"kind": "adamw", "lr": 0.01}, steps=60, batch_size=64)
    points = [point for record in train(spec) if isinstance(record, Metrics) for point in record.points]
    assert max(point.value for point in points if point.key == "test/accuracy") > 0.4
