"""Every norm of the shelf leaves the house: through torch.export, and as ONNX that onnxruntime runs."""

import importlib.util

import pytest
import torch
from torch import nn

from normcore.refusal import Refusal
from normcore.spec import MENU, kind_of
from normcore.surgery.convert import convert
from normcore.surgery.onnx_export import export_onnx
from tests.normcore.surgery.nets import Net
from tests.normcore.surgery.test_convert import small

C = 8


def made(kind: str) -> nn.Module:
    spec = next(spec for spec in MENU["norm"] if kind_of(spec) == kind)
    knobs = {name: value for name, value in small(kind).items() if name != "kind"}
    norm = spec(**knobs).part()(C, **spec(**knobs).knobs())
    generator = torch.Generator().manual_seed(0)
    norm.train()(torch.randn(6, C, 5, 5, generator=generator) * 2 + 1)
    for parameter in norm.parameters():
        parameter.data.add_(torch.rand(parameter.shape, generator=generator) * 0.1)
    return norm.eval()


class Parallel(nn.Module):
    """All norms of the shelf beside one another: one export instead of one each."""

    def __init__(self, kinds: list[str]):
        super().__init__()
        self.norms = nn.ModuleDict({kind: made(kind) for kind in kinds})

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [norm(x) for norm in self.norms.values()]


KINDS = [kind_of(spec) for spec in MENU["norm"]]


@pytest.mark.parametrize("kind", KINDS)
def test_every_norm_goes_through_torch_export(kind):
    norm = made(kind)
    batch = {0: torch.export.Dim.DYNAMIC}
    exported = torch.export.export(norm, (torch.randn(4, C, 5, 5),), dynamic_shapes=(batch,), strict=False).module()
    for n in (2, 4, 7):
        x = torch.randn(n, C, 5, 5)
        torch.testing.assert_close(exported(x), norm(x), rtol=1e-5, atol=1e-6)


def test_every_norm_is_the_same_in_onnxruntime(tmp_path):
    done = export_onnx(Parallel(KINDS), torch.randn(4, C, 5, 5), tmp_path / "norms.onnx")
    assert done.error < 1e-5
    assert done.path.exists()


def test_a_converted_net_is_the_same_in_onnxruntime_for_any_batch(tmp_path):
    torch.manual_seed(0)
    x = torch.randn(1, 3, 8, 8)
    done = export_onnx(convert(Net(), "filter_response", calibration=x).model, x, tmp_path / "net.onnx")
    assert "Conv" in done.operators
    assert done.error < 1e-5


class Decomposes(nn.Module):
    def forward(self, x):
        return torch.linalg.eigh(x @ x.mT).eigenvectors


class Branches(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (Decomposes(), "every operator must have an ONNX form, got aten._linalg_eigh, which has none"),
        (Branches(), "the forward must be exportable by torch.export, got "),
    ],
)
def test_what_has_no_onnx_form_is_refused_with_its_reason(model, sentence, tmp_path):
    with pytest.raises(Refusal, match=sentence) as refused:
        export_onnx(model, torch.randn(3, 4, 4), tmp_path / "none.onnx", dynamic_batch=False)
    assert refused.value.code == "not-exportable"
    assert not (tmp_path / "none.onnx").exists()


def test_a_file_that_computes_something_else_is_refused_and_removed(tmp_path, monkeypatch):
    monkeypatch.setattr("normcore.surgery.onnx_export._run_onnx", lambda _, batch: [torch.zeros_like(batch[0])])
    with pytest.raises(Refusal, match=r"up to a relative 1.0e-05, got 1.0e\+00; raise the tolerance") as refused:
        export_onnx(nn.Hardtanh(), torch.ones(2, 2), tmp_path / "wrong.onnx")
    assert refused.value.code == "onnx-differs"
    assert not (tmp_path / "wrong.onnx").exists()


def test_without_the_packages_it_says_how_to_get_them(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(Refusal, match=r"got none of the name onnxscript; install them with pip install 'normcore") as e:
        export_onnx(nn.ReLU(), torch.ones(2, 2), tmp_path / "none.onnx")
    assert e.value.code == "onnx-not-installed"
