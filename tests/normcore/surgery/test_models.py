"""Whole nets: our own, and those of torchvision and timm where they are installed."""

import pytest
import torch
from torch import nn

from normcore.build import build_model
from normcore.spec import JobSpec
from normcore.surgery.convert import convert
from normcore.surgery.fold import fold
from tests.normcore.surgery.nets import gap

X = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
TARGETS = [{"kind": "group", "num_groups": 4}, "layer", "instance", "filter_response", "batch", "none"]


def lived(model: nn.Module, x: torch.Tensor) -> nn.Module:
    """The model in evaluation, with running statistics of its own activations."""
    with torch.no_grad():
        model.train()(x)
        model(x)
    return model.eval()


def check(model: nn.Module, x: torch.Tensor, number: int) -> None:
    """Folds, converts to every target and back, and looks at what the accounts say."""
    lived(model, x)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    folding = fold(model)
    assert sum(bool(row.into) for row in folding.rows) == number
    assert gap(model(x), folding.model(x)) < 1e-5
    for to in TARGETS:
        conversion = convert(model, to, calibration=x)
        assert len(conversion.rows) == number
        assert not [row for row in conversion.rows if row.how == "kept"]
        assert conversion.model(x).isfinite().all()
        if to in {"batch", "none"} if isinstance(to, str) else False:
            assert conversion.exact
            assert conversion.error < 1e-5
        else:
            # Timm starts the last gamma of a branch at zero, and nothing is nothing by any norm.
            silent = {
                path for path, module in model.named_modules() if not getattr(module, "weight", torch.ones(1)).any()
            }
            assert {row.path for row in conversion.rows if row.how == "exact"} == {
                row.path for row in conversion.rows
            } & silent
            back = convert(conversion.model, "batch", calibration=x)
            assert len(back.rows) == number
            assert back.model(x).isfinite().all()
        reverted = conversion.revert()
        assert [type(module) for module in reverted.modules()] == [type(module) for module in model.modules()]
        assert list(reverted.state_dict()) == list(before)
        assert all(torch.equal(value, before[name]) for name, value in reverted.state_dict().items())


@pytest.mark.parametrize("placement", ["post", "pre"])
def test_our_own_resnet(placement):
    spec = {
        "model": {"kind": "resnet", "depth": 8, "width": 0.5, "activation_placement": placement},
        "norm": {"kind": "batch"},
        "data": {"kind": "cifar10"},
    }
    model, x = build_model(JobSpec.model_validate(spec)), X[:, :, :16, :16]
    if placement == "post":
        check(model, x, 7)
        taken = [row.why for row in convert(model, "filter_response").rows]
        assert taken.count("") == 4
        assert taken.count("without tlu: no relu follows that reads it alone") == 3
    else:
        folding = fold(lived(model, x))
        assert gap(model(x), folding.model(x)) < 1e-5
        assert [row.why for row in convert(model, "filter_response").rows] == [""] * 7


def test_torchvision_s_resnet():
    models = pytest.importorskip("torchvision.models")
    model = models.resnet18()
    check(model, X, 20)
    conversion = convert(model, "filter_response")
    assert conversion.rewritten == tuple(f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1))
    assert [row.path for row in conversion.rows if not row.why] == [
        "bn1",
        *(f"{path}.bn1" for path in conversion.rewritten),
    ]


@pytest.mark.parametrize(("name", "number"), [("resnet18", 20), ("regnetx_002", 44), ("efficientnet_b0", 49)])
def test_timm_s_nets(name, number):
    timm = pytest.importorskip("timm")
    check(timm.create_model(name), X, number)


def test_timm_s_vision_transformer_takes_rms_norm_on_its_tokens():
    timm = pytest.importorskip("timm")
    model = timm.create_model("vit_tiny_patch16_224", depth=2, img_size=64).eval()
    exact = convert(model, "layer_channels", calibration=X)
    assert exact.exact
    assert exact.error < 1e-5
    conversion = convert(model, "rms", calibration=X)
    assert {row.how for row in conversion.rows} == {"matched"}
    assert conversion.model(X).isfinite().all()
