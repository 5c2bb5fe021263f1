"""What every part on the menu owes, in every company: a finite step, or a refusal with its reason."""

import itertools
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
import torch

from normcore.build import build_model
from normcore.data.folders import DataFolders
from normcore.menu.spec import Spec
from normcore.noise.noise import Noise, start_step
from normcore.norms.norm import Norm
from normcore.objective import loss_of
from normcore.preview import preview
from normcore.spec import MENU, JobSpec, kind_of

SMALL: dict[str, dict[str, Any]] = {
    "mlp": {"hidden": [6, 4]},
    "vgg": {"width": 0.0625},
    "resnet": {"depth": 8, "width": 0.25},
    "plain": {"depth": 8, "width": 0.25},
    "deep_linear": {"depth": 3},
    "inception_small": {"width": 0.25},
    "transformer": {"depth": 1, "width": 8, "heads": 2},
    "lstm": {"hidden": 8},
    "group": {"num_groups": 2},
    "evonorm_s0": {"num_groups": 2},
    "ghost": {"virtual_batch_size": 2},
    "sync": {"virtual_ranks": 2},
    "batch_renorm": {"warmup_steps": 1, "r_steps": 3, "d_steps": 2},
    "power": {"warmup_steps": 1},
    "whitening": {"channels_per_group": 2},
    "iterative": {"channels_per_group": 2},
    "mnist": {"size": 32},
    "fashion_mnist": {"size": 32},
    "imagefolder": {"path": "own"},
    "parquet": {"path": "own.parquet"},
}
"""Knobs that make a part small enough for a test."""

REFUSED = {
    *(("deep_linear", kind) for kind in ("instance", "switchable", "filter_response", "evonorm_s0", "evonorm_b0")),
    *(("transformer", kind) for kind in ("filter_response", "evonorm_s0", "evonorm_b0")),
    ("mlp", "instance"),
    ("mlp", "switchable"),
    ("mlp", "filter_response"),
    ("resnet", "filter_response"),
    ("resnet", "evonorm_s0"),
    ("resnet", "evonorm_b0"),
}
"""Models on whose maps a norm can do nothing, or in which no activation follows every norm."""

REFUSED_WEIGHTS = {
    ("fixup", "resnet", "batch"),
    ("fixup", "resnet", "group"),
    *(("fixup", "transformer", norm) for norm in ("none", "batch", "group")),
    ("fixup", "plain", "none"),
    ("fixup", "plain", "batch"),
    ("fixup", "plain", "group"),
}
"""Norms that would follow branches which a weight method starts at zero, and models that have lost their branches."""

N = 4


def small(kind: str) -> dict[str, Any]:
    return {"kind": kind} | SMALL.get(kind, {})


def kinds(family: str) -> list[str]:
    return [kind_of(spec) for spec in MENU[family]]


MODELS = [kind for kind in kinds("model") if kind != "timm"]
"""Those that need no other package; see models/test_timm.py."""

# A cell's weights are no map's: that weight methods are refused there is told by the tests of the preview.
MAPPED = [model for model in MODELS if model != "lstm"]
WEIGHED = list(itertools.product(kinds("weight"), MAPPED, ("none", "batch", "group")))
LIKE_OTHERS = {"patches", "cifar100", "mnist", "fashion_mnist", "imagefolder", "parquet"}
"""Datasets whose images are to a net what those of others are: each model takes them once."""

COMBINATIONS = [
    (norm, model, noise, data)
    for norm, model, noise, data in itertools.product(kinds("norm"), MODELS, kinds("noise"), kinds("data"))
    if data not in LIKE_OTHERS or (norm, noise) == ("batch", "none")
]


@pytest.fixture
def folders(tmp_path) -> DataFolders:
    """A data folder in which every dataset seems to lie; a preview reads none."""
    for name in ("uoft-cs/cifar10", "uoft-cs/cifar100", "ylecun/mnist", "zalando-datasets/fashion_mnist"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "train.parquet").touch()
    for number in range(2 * N):
        folder = tmp_path / f"own/train/{number % N}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.png").touch()
    rows = pa.table({"image": [b""] * 2 * N, "label": [*range(N)] * 2})
    pa.parquet.write_table(rows, tmp_path / "own.parquet")
    return DataFolders(tmp_path, tmp_path / "cache", hub=False)


@pytest.mark.parametrize(("norm", "model", "noise", "data"), COMBINATIONS)
def test_every_combination_makes_a_finite_step_or_is_refused_with_a_reason(norm, model, noise, data, folders):
    spec = JobSpec.model_validate(
        {"norm": small(norm), "model": small(model), "noise": small(noise), "data": small(data), "batch_size": N}
    )
    if spec.data.form not in spec.model.takes:
        assert [reason.code for reason in preview(spec, folders).reasons][:1] == ["model-takes-other-data"]
        return
    assert_steps_or_is_refused(spec, (model, norm) in REFUSED, folders)


def data_for(model: str) -> dict[str, Any]:
    (spec,) = (spec for spec in MENU["model"] if kind_of(spec) == model)
    return next(
        small(kind_of(data)) for data in MENU["data"] if data(**SMALL.get(kind_of(data), {})).form in spec.takes
    )


@pytest.mark.parametrize(("weight", "model", "norm"), WEIGHED)
def test_every_weight_method_makes_a_finite_step_or_is_refused_with_a_reason(weight, model, norm, folders):
    spec = JobSpec.model_validate(
        {"weight": small(weight), "model": small(model), "norm": small(norm), "data": data_for(model), "batch_size": N}
    )
    assert_steps_or_is_refused(spec, (weight, model, norm) in REFUSED_WEIGHTS, folders)


def assert_steps_or_is_refused(spec: JobSpec, refused: bool, folders: DataFolders) -> None:
    seen = preview(spec, folders)
    assert bool(seen.reasons) == refused
    if seen.reasons:
        assert all(reason.layer and reason.detail for reason in seen.reasons)
        return
    spec = seen.spec
    net = build_model(spec)
    images = torch.randn(N, *spec.data.shape)
    labels = torch.arange(N) if spec.data.task == "classification" else torch.randn(N, spec.data.num_outputs)
    start_step(net, spec.seed, 0)
    logits = net(images)
    assert logits.shape == (N, spec.data.num_outputs)
    loss_of(spec.data)(logits, labels).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    assert sum(p.numel() for p in net.parameters()) == seen.num_parameters
    net.eval()
    assert torch.equal(net(images), net(images))


@pytest.mark.parametrize("spec", MENU["norm"], ids=kind_of)
def test_every_norm_is_a_norm_that_keeps_shape_dtype_and_memory_format(spec):
    made = spec(**SMALL.get(kind_of(spec), {}))
    norm = made.part()(4, **made.knobs())
    assert isinstance(norm, Norm)
    assert norm.num_features == 4
    x = torch.randn(N, 4, 5, 5).to(memory_format=torch.channels_last)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        y = norm(x.to(dtype))
        assert (y.shape, y.dtype) == (x.shape, dtype)
        assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("spec", MENU["noise"], ids=kind_of)
def test_every_noise_is_a_noise_that_is_silent_in_evaluation(spec):
    noise = spec().part()(4, **spec().knobs())
    assert isinstance(noise, Noise)
    assert noise.num_features == 4
    x = torch.randn(3, 4, 5, 5)
    assert torch.equal(noise.eval()(x), x)


@pytest.mark.parametrize("spec", [spec for family in MENU.values() for spec in family if spec.target], ids=kind_of)
def test_every_target_is_there_and_its_module_is_named_after_the_kind(spec: type[Spec]):
    module = spec.target.partition(":")[0].rpartition(".")[2]
    assert module == kind_of(spec)
    assert callable(spec.model_construct().part())
