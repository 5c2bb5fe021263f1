"""What every norm on the menu owes: it is walked, so nobody can forget one."""

import inspect
from typing import Any

import pytest
import torch

from normcore.certificate.certify import GROUPS, certify
from normcore.certificate.shelf import shelf, shelf_layer
from normcore.norms.claims import Claims
from normcore.norms.norm import Norm
from normcore.refusal import Refusal
from normcore.spec import MENU, kind_of

KNOBS: dict[str, list[dict[str, Any]]] = {
    "batch": [{}, {"affine": False}, {"estimator": "paper"}, {"estimator": "population"}],
    "group": [{"num_groups": 2}, {}],
    "ghost": [{"virtual_batch_size": 2}],
    "lp": [{"p": "1"}, {"p": "2"}, {"p": "inf"}],
    "filter_response": [{}, {"tlu": False}, {"learned_eps": True}],
    "local_response": [{}, {"convention": "torch", "alpha": 1.0, "size": 3}],
    "whitening": [{"channels_per_group": 4}, {"channels_per_group": 4, "method": "pca"}],
    "iterative": [{"channels_per_group": 4}],
    "sync": [{"virtual_ranks": 2}],
    "batch_renorm": [{}, {"warmup_steps": 0}],
    "power": [{}, {"warmup_steps": 0}],
    "evonorm_s0": [{"num_groups": 2}],
}
"""Knobs to try, small ones where the defaults want many channels; a norm that is not here is tried as it comes."""

CASES = [(kind, knobs) for kind in shelf() for knobs in KNOBS.get(kind, [{}])]
SPECS = {kind_of(spec): spec for spec in MENU["norm"]}

each = pytest.mark.parametrize(("kind", "knobs"), CASES, ids=lambda part: part if isinstance(part, str) else None)
each_kind = pytest.mark.parametrize("kind", shelf())


def small(kind: str, **more: Any) -> Norm:
    """The norm with its first knobs, for eight channels."""
    spec = SPECS[kind](**KNOBS.get(kind, [{}])[0])
    norm: Norm = spec.part()(8, **spec.knobs(), **more)
    return norm


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


@each
def test_every_claim_holds_and_none_is_too_modest(kind, knobs):
    layer = shelf_layer(kind, **knobs)
    certificate = certify(layer, groups=[group for group in GROUPS if group != "tracing"])
    assert certificate.passed, certificate.table()
    if layer.claims.gradient == "approximate":
        return  # It changes with the steps it has made, and claims what holds at all of them.
    seen = {row.property: row for row in certificate.rows}
    for name in ("scale invariance", "oddness", "Santurkar's theorem 4.1"):
        assert seen[name].verdict == "pass" or seen[name].observed == "no", f"{name} holds and is not claimed"
    if seen["moved in training by other"].observed != "pixels":
        assert seen["shift invariance"].observed in {seen["shift invariance"].claimed, "none"}


@each
def test_compiles_and_exports(kind, knobs):
    """In the finest dtype, which shows most; `normcore certify --all` goes through all of them."""
    certificate = certify(shelf_layer(kind, **knobs), groups=["tracing"], cells=[(torch.float64, torch.channels_last)])
    assert certificate.passed, certificate.table()


@each_kind
def test_is_a_norm_with_claims_that_prints_its_knobs(kind):
    norm = small(kind)
    assert isinstance(norm, Norm)
    assert norm.num_features == 8
    assert isinstance(norm.claims, Claims)
    assert isinstance(norm.activates, bool)
    assert norm.extra_repr().startswith("8")
    for name in SPECS[kind].model_fields:
        # What to do where a number does not divide shows in the number.
        assert name in {"kind", "divisibility"} or f"{name}=" in norm.extra_repr(), name


@each_kind
def test_the_constructor_has_the_knobs_and_the_defaults_of_the_menu(kind):
    parameters = inspect.signature(SPECS[kind].target and small(kind).__class__).parameters
    assert next(iter(parameters)) == "num_features"
    fields = {name: field.default for name, field in SPECS[kind].model_fields.items() if name != "kind"}
    assert {name: p.default for name, p in parameters.items() if name in fields} == fields
    assert set(parameters) - set(fields) >= {"num_features", "device", "dtype"}
    assert all(p.kind is p.KEYWORD_ONLY for name, p in parameters.items() if name != "num_features")


@each_kind
@pytest.mark.parametrize("pixels", [(), (5,), (3, 2), (2, 3, 2)], ids=str)
def test_takes_any_number_of_pixel_dimensions_or_says_why_not(kind, pixels):
    norm, x = small(kind), draw(4, 8, *pixels)
    try:
        y = norm(x)
    except Refusal:
        assert pixels == ()
        return
    assert y.shape == x.shape
    assert norm.eval()(x).shape == x.shape
    assert y.isfinite().all()


@each_kind
def test_wrong_channels_are_refused_with_both_values(kind):
    with pytest.raises(Refusal, match=r"num_features 8 in dimension 1, got shape \(4, 6, 3, 3\)") as refused:
        small(kind)(draw(4, 6, 3, 3))
    assert refused.value.code == "channels-differ"


@each_kind
@pytest.mark.parametrize(
    ("dtype", "kept"),
    [(None, torch.float32), (torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.float64,) * 2],
)
def test_parameters_and_statistics_are_float32_or_better(kind, dtype, kept):
    norm = small(kind, dtype=dtype)
    tensors = [*norm.parameters(), *norm.buffers()]
    # What is counted may be kept finer than what is averaged.
    assert {t.dtype for t in tensors if t.is_floating_point() and t.dim()} <= {kept}
    x = draw(4, 8, 3, 3, dtype=dtype or torch.float32)
    assert norm(x).dtype == x.dtype


@each_kind
def test_is_built_on_the_meta_device(kind):
    norm = small(kind, device="meta")
    assert all(tensor.is_meta for tensor in (*norm.parameters(), *norm.buffers()))
    assert norm(torch.empty(4, 8, 3, 3, device="meta")).shape == (4, 8, 3, 3)


@each_kind
def test_buffers_stay_at_their_addresses(kind):
    norm = small(kind)
    before = {name: (id(buffer), buffer.data_ptr()) for name, buffer in norm.named_buffers()}
    norm(draw(4, 8, 3, 3))
    norm.eval()(draw(4, 8, 3, 3))
    assert {name: (id(buffer), buffer.data_ptr()) for name, buffer in norm.named_buffers()} == before


@each_kind
@pytest.mark.parametrize("pixels", [(5,), (3, 2)], ids=str)
def test_a_relu_in_place_may_follow(kind, pixels):
    x = draw(4, 8, *pixels, dtype=torch.float64).requires_grad_()
    cotangent = draw(4, 8, *pixels, dtype=torch.float64)
    given, wanted = small(kind, dtype=torch.float64), small(kind, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((given(x * 1).relu_() * cotangent).sum(), x)
    torch.testing.assert_close(gradient, torch.autograd.grad((wanted(x).relu() * cotangent).sum(), x)[0])


MASKED = [kind for kind in shelf() if "mask" in inspect.signature(SPECS[kind]().part().forward).parameters]


@pytest.mark.parametrize("kind", MASKED)
@pytest.mark.parametrize("training", [True, False])
def test_padded_tokens_are_neither_seen_nor_given_anything(kind, training):
    norm, x = small(kind, dtype=torch.float64).train(training), draw(4, 8, 5, dtype=torch.float64)
    mask = torch.ones(4, 5, dtype=torch.bool)
    torch.testing.assert_close(norm(x, mask), norm(x), rtol=0, atol=1e-12)
    mask[1, 3:], mask[2] = False, False
    other = torch.where(mask[:, None], x, 1e3).requires_grad_()
    y, moved = norm(x, mask), norm(other, mask)
    torch.testing.assert_close(moved, y, rtol=0, atol=1e-12)
    padded = ~mask[:, None].expand_as(y)
    assert not y[padded].any()
    (gradient,) = torch.autograd.grad((moved * draw(4, 8, 5, dtype=torch.float64)).sum(), other)
    assert gradient.isfinite().all()
    assert not gradient[padded].any()
    assert gradient[~padded].any()
