import copy
import json

import pytest
import torch
from torch import Tensor, nn

import normcore
from normcore.certificate.certify import GROUPS, certify
from normcore.certificate.promises import state
from normcore.norms.batch import BatchNorm
from normcore.norms.claims import Claims
from normcore.norms.group import GroupNorm
from normcore.refusal import Refusal

QUICK = [group for group in GROUPS if group != "tracing"]


class Scaled(nn.Module):
    """Somebody's layer, which claims nothing: a root mean square of each sample."""

    def __init__(self, num_features: int = 6) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.full((num_features,), 2.0))

    def forward(self, x: Tensor) -> Tensor:
        scale = x.square().flatten(1).mean(1).add(1e-6).rsqrt().view(-1, *(1 for _ in x.shape[1:]))
        return x * scale * self.gain.to(x.dtype).view(-1, *(1 for _ in x.shape[2:]))


TORCH = [
    nn.BatchNorm1d(6),
    nn.BatchNorm2d(6),
    nn.BatchNorm3d(6),
    nn.BatchNorm2d(6, affine=False, momentum=0.01, eps=1e-3),
    nn.BatchNorm2d(1),
    nn.BatchNorm2d(7, eps=1e-12),
    nn.InstanceNorm2d(1),
    nn.InstanceNorm2d(6, affine=True),
    nn.GroupNorm(3, 6),
    nn.LayerNorm(6),
    nn.LayerNorm((6, 4, 4)),
    nn.RMSNorm(6, eps=1e-5),
    nn.RMSNorm(6),
    nn.LocalResponseNorm(3),
]


@pytest.mark.parametrize("layer", TORCH, ids=repr)
def test_torchs_norms_keep_what_torch_says_of_them(layer):
    certificate = certify(layer, groups=QUICK)
    assert certificate.passed, certificate.table()
    assert certificate.row("statistics").verdict == "pass"


@pytest.mark.parametrize("shape", [(2, 6, 1, 1), (3, 6, 1, 2), (5, 6, 3, 3)])
def test_a_right_layer_fails_nothing_on_any_shape_that_it_takes(shape):
    certificate = certify(nn.BatchNorm2d(6), shape=shape, groups=QUICK)
    assert certificate.passed, certificate.table()


def test_neither_the_default_dtype_nor_inference_mode_counts():
    with torch.inference_mode():
        assert certify(nn.BatchNorm2d(6), groups=["gradients"]).passed
    torch.set_default_dtype(torch.float64)
    try:
        assert certify(nn.GroupNorm(2, 6, dtype=torch.float32), groups=["precision"]).passed
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (nn.LazyBatchNorm2d(), "got one whose sizes are unknown until it has seen a batch"),
        (nn.BatchNorm2d(6, device="meta"), "got one on the meta device"),
        (torch.jit.script(nn.BatchNorm2d(6)), "got a scripted one"),
    ],
    ids=["lazy", "meta", "scripted"],
)
def test_a_layer_that_cannot_be_copied_and_called_is_refused(layer, said):
    with pytest.raises(Refusal, match=said) as refused:
        certify(layer)
    assert refused.value.code == "not-to-be-tried"


def test_a_shape_that_the_layer_does_not_take_is_refused():
    with pytest.raises(Refusal, match=r"takes none of \(4, 5, 2, 2\); it said RuntimeError"):
        certify(nn.GroupNorm(2, 6), shape=(4, 5, 2, 2))


def test_facts_of_a_layer_without_claims_fail_nothing():
    certificate = certify(Scaled(), groups=QUICK)
    assert certificate.passed
    assert certificate.shape == (4, 6, 4, 4)
    facts = {row.property: row.observed for row in certificate.rows if row.verdict == "not claimed"}
    assert facts["statistics"] == "sample"
    assert facts["moved in training by other"] == "channels and pixels"
    assert facts["scale invariance"] == "yes"
    assert facts["shift invariance"] == "none"
    assert facts["oddness"] == "yes"
    assert facts["variance"] == "none"
    assert (facts["eps"], facts["value of eps"]) == ("inside", "1e-06")
    owed = {row.property for row in certificate.rows if row.verdict == "pass"}
    assert owed == {"shape", "same twice", "dtype", "finite", "state in evaluation", "gradient"}


@pytest.mark.parametrize(
    ("layer", "row"),
    [(nn.Dropout(), "same twice"), (nn.MaxPool2d(2), "shape"), (nn.Hardtanh(), None), (nn.Softmax2d(), None)],
    ids=repr,
)
def test_promises_are_owed_without_any_claim(layer, row):
    assert [failed.property for failed in certify(layer, groups=[]).failures] == ([row] if row else [])


def test_what_follows_a_broken_vital_promise_is_skipped_with_the_reason():
    certificate = certify(nn.Dropout(), groups=["invariances"])
    assert certificate.row("oddness").verdict == "skipped"
    assert certificate.row("oddness").reason == "same twice: other bits in training"


def test_claims_are_taken_from_the_caller_then_from_a_kind_then_from_the_layer():
    only = {"groups": ["invariances"]}
    assert certify(GroupNorm(4, num_groups=2), **only).row("shift invariance").claimed == "sample"
    assert certify(GroupNorm(4, num_groups=2), like="batch", **only).row("shift invariance").claimed == "channel"
    claims = Claims(statistics="sample", odd=False)
    assert certify(GroupNorm(4, num_groups=2), claims=claims, **only).row("oddness").verdict == "not claimed"


def test_a_weaker_claim_holds_where_a_stronger_would():
    certificate = certify(
        BatchNorm(4), claims=Claims(statistics="batch", shift_invariant="sample"), groups=["invariances"]
    )
    row = certificate.row("shift invariance")
    assert (row.claimed, row.observed, row.verdict) == ("sample", "channel", "pass")


@pytest.mark.parametrize("training", [True, False])
def test_the_layer_and_the_random_numbers_are_left_alone(training):
    layer = nn.BatchNorm2d(4).train(training)
    layer(torch.randn(5, 4, 2, 2))
    before, seed = copy.deepcopy(state(layer)), torch.get_rng_state()
    with torch.no_grad():
        assert certify(layer, groups=QUICK).passed
        assert not torch.is_grad_enabled()
    assert layer.training == training
    assert all(
        torch.equal(torch.as_tensor(before[name]), torch.as_tensor(value)) for name, value in state(layer).items()
    )
    assert all(parameter.grad is None for parameter in layer.parameters())
    assert torch.equal(torch.get_rng_state(), seed)


def test_the_same_layer_has_the_same_certificate():
    first, second = (certify(nn.GroupNorm(2, 8), groups=QUICK) for _ in range(2))
    assert [(r.property, r.observed, r.error) for r in first.rows] == [
        (r.property, r.observed, r.error) for r in second.rows
    ]


def test_a_trained_scale_and_shift_are_put_aside():
    layer = nn.BatchNorm2d(4)
    nn.init.uniform_(layer.weight, 1, 3)
    nn.init.uniform_(layer.bias, 1, 3)
    assert certify(layer, groups=["invariances", "conventions"]).passed


@pytest.mark.parametrize("eps", [1e-12, 1e-8, 1e-5, 1e-3, 0.1])
@pytest.mark.parametrize("layer", [nn.BatchNorm2d, lambda c, eps: nn.GroupNorm(2, c, eps=eps), BatchNorm])
def test_eps_is_measured_whatever_its_size(layer, eps):
    certificate = certify(layer(8, eps=eps), groups=["conventions", "invariances"])
    assert certificate.row("value of eps").observed == f"{eps:.3g}"
    assert certificate.passed, certificate.table()


@pytest.mark.parametrize("momentum", [0.01, 0.3, 1.0])
def test_the_weight_of_the_newest_batch_is_measured(momentum):
    row = certify(nn.BatchNorm2d(4, momentum=momentum), groups=["conventions"]).row("weight of the newest batch")
    assert (row.observed, row.verdict) == (f"{momentum:g}", "pass")


def test_compiles_and_exports_in_every_dtype_and_memory_format():
    certificate = certify(nn.BatchNorm2d(4), groups=["tracing"])
    assert certificate.passed
    assert certificate.row("compiles: float16 channels_last").verdict == "pass"
    assert sum(row.property.startswith(("compiles", "exports")) for row in certificate.rows) == 16


def test_a_layer_that_cannot_be_traced_fails_where_it_claims_to_be():
    class Branches(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if x.sum().item() > -1e9 else x

    certificate = certify(Branches(4), like="batch", groups=["tracing"])
    failed = {row.property for row in certificate.failures}
    assert failed >= {"compiles: float32 contiguous", "exports: float32 contiguous"}
    assert all("raises" in row.observed for row in certificate.failures)


def test_what_a_stranger_raises_is_what_was_seen():
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, gradient):
            return gradient

    class Layer(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return Once.apply(x).tanh()

    certificate = certify(Layer(), claims=Claims(statistics="none", scale_invariant=False), groups=["gradients"])
    row = certificate.row("forward over reverse is reverse over reverse")
    assert row.verdict == "fail"
    assert row.observed.startswith("raises RuntimeError: ")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"like": "bach"}, 'there is no norm of kind "bach"; on offer: none, batch, '),
        ({"groups": ["speed"]}, "there are the rows invariances, .* got 'speed'; take some of these"),
        ({"like": "batch", "claims": Claims(statistics="batch")}, "claims one thing, got both claims and like"),
    ],
)
def test_what_cannot_be_asked_is_refused(arguments, sentence):
    with pytest.raises(Refusal, match=sentence):
        certify(nn.BatchNorm2d(4), **arguments)


def test_a_layer_that_takes_no_maps_is_refused():
    with pytest.raises(Refusal, match=r"takes none of \(4, 8, 4, 4\), .* the first said TypeError: .*; name a shape"):
        certify(nn.Bilinear(8, 8, 8))


def test_a_shape_can_be_asked_for():
    assert certify(nn.GroupNorm(2, 6), shape=(3, 6, 5), groups=["invariances"]).shape == (3, 6, 5)


def test_certificate_as_text_and_as_json():
    certificate = normcore.certify(nn.GroupNorm(2, 8), like="batch", groups=["invariances"])
    layer, heading, *rows, summary = certificate.table().splitlines()
    assert layer == "GroupNorm(2, 8, eps=1e-05, affine=True, bias=True) on (4, 8, 4, 4)"
    assert heading.split() == ["property", "claimed", "observed", "error", "tolerance", "verdict"]
    assert len(rows) == len(certificate.rows)
    assert summary == "9 passed, 2 failed, 0 skipped, 0 not claimed"
    read = json.loads(certificate.to_json())
    assert read["passed"] is False
    assert read["rows"][0] == {
        "property": "shape",
        "claimed": "kept",
        "observed": "kept",
        "error": None,
        "tolerance": None,
        "verdict": "pass",
        "reason": "",
        "seconds": certificate.rows[0].seconds,
    }
    with pytest.raises(KeyError, match="no row 'speed'; there are shape, "):
        certificate.row("speed")


def test_infinite_errors_are_null_in_json():
    class Nan(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x / (x - x)

    certificate = certify(Nan(), like="none", groups=["invariances"])
    assert any(row.error == float("inf") for row in certificate.failures)
    assert "Infinity" not in certificate.to_json()
