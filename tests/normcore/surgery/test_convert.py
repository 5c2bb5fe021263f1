"""Norms exchanged: which function is kept, which is only matched, and what is said about it."""

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from normcore.menu.norms import FilterResponseNormSpec, GroupNormSpec
from normcore.norms.batch import BatchNorm
from normcore.norms.filter_response import FilterResponseNorm
from normcore.norms.group import GroupNorm
from normcore.norms.instance import InstanceNorm
from normcore.norms.layer import LayerNorm
from normcore.norms.norm import Norm
from normcore.refusal import Refusal
from normcore.spec import MENU, kind_of
from normcore.surgery.convert import convert
from normcore.surgery.fold import fold
from tests.normcore.surgery.nets import Net, gap, lived
from tests.normcore.surgery.test_known import BatchNormAct2d, LayerNorm2d, MyOwnNorm

ON_THE_SHELF = {kind_of(spec) for spec in MENU["norm"]}
SMALL = {"group": {"num_groups": 4}, "whitening": {"channels_per_group": 4}, "iterative": {"channels_per_group": 4}}
SMALL |= {"evonorm_s0": {"num_groups": 4}, "ghost": {"virtual_batch_size": 3}}


def small(kind: str) -> dict[str, object]:
    return {"kind": kind} | SMALL.get(kind, {})


def same_bits(one: nn.Module, other: nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    classes = [(path, type(module)) for path, module in one.named_modules()]
    return (
        list(a) == list(b)
        and all(torch.equal(a[name], b[name]) for name in a)
        and classes == [(path, type(module)) for path, module in other.named_modules()]
    )


@pytest.mark.parametrize("kind", sorted(ON_THE_SHELF))
def test_any_norm_comes_in_is_accounted_for_and_goes_out_again(kind, net, x):
    before = copy.deepcopy(net)
    conversion = convert(net, small(kind), calibration=x)
    assert [row.path for row in conversion.rows] == [
        "bn",
        "blocks.0.bn1",
        "blocks.0.bn2",
        "blocks.1.bn1",
        "blocks.1.bn2",
        "last.1",
    ]
    for row in conversion.rows:
        layer = conversion.model.get_submodule(row.path)
        assert isinstance(layer, Norm) == (row.how != "kept")
        assert (row.why != "") or row.how != "kept"
        assert row.error is None or row.how != "exact" or row.error < 1e-12
    assert conversion.model(x).isfinite().all()
    assert not any(module.training for module in conversion.model.modules())
    assert same_bits(net, before)
    assert same_bits(conversion.revert(), before)


@pytest.mark.parametrize("kind", ["batch", "ghost", "sync", "batch_renorm", "lp", "power", "none"])
def test_batch_norm_becomes_its_relatives_and_nothing_changes_in_evaluation(kind, net, x):
    conversion = convert(net, small(kind), calibration=x)
    assert {row.how for row in conversion.rows} == {"exact"}
    assert conversion.exact
    assert conversion.error < 1e-12
    assert gap(net(x), conversion.model(x)) < 1e-12
    assert gap(net.float()(x.float()), convert(net, small(kind)).model(x.float())) < 1e-5


@pytest.mark.parametrize(
    "pair", list(itertools.permutations(["batch", "ghost", "sync", "batch_renorm", "lp", "power"], 2)), ids="-".join
)
def test_relatives_of_batch_norm_become_one_another(pair, x):
    there, back = (small(kind) for kind in pair)
    spec = next(spec for spec in MENU["norm"] if kind_of(spec) == pair[0])
    made = spec(**SMALL.get(pair[0], {}))
    norm = lived(made.part()(3, **made.knobs()), 6, 3, 4, 4)
    there = convert(norm, back)
    assert there.exact
    assert gap(norm(x), there.model(x)) < 1e-12


@pytest.mark.parametrize(
    ("layer", "kind", "shape"),
    [
        (nn.BatchNorm1d(4), "batch", (6, 4)),
        (nn.BatchNorm1d(4), "batch", (6, 4, 5)),
        (nn.BatchNorm2d(4, eps=0.1, momentum=0.3), "batch", (6, 4, 5, 5)),
        (nn.BatchNorm3d(4, affine=False), "batch", (6, 4, 3, 3, 3)),
        (nn.GroupNorm(2, 4, eps=0.1), {"kind": "group", "num_groups": 2}, (6, 4, 5, 5)),
        (nn.GroupNorm(1, 4), "layer", (6, 4, 5, 5)),
        (nn.GroupNorm(4, 4), "instance", (6, 4, 5, 5)),
        (nn.InstanceNorm2d(4), "instance", (6, 4, 5, 5)),
        (nn.InstanceNorm1d(4, affine=True), {"kind": "group", "num_groups": 4}, (6, 4, 5)),
        (nn.InstanceNorm2d(4, affine=True, track_running_stats=True), "batch", (6, 4, 5, 5)),
        (nn.LayerNorm((4, 5, 5)), "layer", (6, 4, 5, 5)),
        (nn.LayerNorm((4, 5, 5), elementwise_affine=False), {"kind": "group", "num_groups": 1}, (6, 4, 5, 5)),
        (LayerNorm(4), {"kind": "group", "num_groups": 1}, (6, 4, 5, 5)),
        (GroupNorm(4, num_groups=4), "instance", (6, 4, 5, 5)),
        (InstanceNorm(4), {"kind": "group", "num_groups": 4}, (6, 4, 5, 5)),
        pytest.param(nn.LayerNorm(4), "layer_channels", (6, 5, 4), id="tokens"),
        pytest.param(LayerNorm2d(4, eps=0.1), "layer_channels", (6, 4, 5, 5), id="pixels"),
        pytest.param(nn.RMSNorm(4), "rms", (6, 5, 4), id="rms"),
        pytest.param(nn.LocalResponseNorm(3, k=2.0), "local_response", (6, 4, 5, 5), id="local"),
    ],
)
def test_one_function_by_two_names(layer, kind, shape):
    layer = layer.double().eval()
    for tensor in (*layer.parameters(), *layer.buffers()):
        if tensor.is_floating_point():
            flat = torch.rand(tensor.shape[:1], dtype=torch.float64) + 0.5
            tensor.data.copy_(flat.view(-1, *(1,) * (tensor.dim() - 1)).expand_as(tensor))
    x = torch.randn(shape, dtype=torch.float64)
    conversion = convert(layer, kind, calibration=x)
    assert [row.how for row in conversion.rows] == ["exact"]
    assert gap(layer(x), conversion.model(x)) < 1e-12
    assert conversion.error < 1e-12


@pytest.mark.parametrize("kind", ["group", "layer", "instance", "filter_response"])
def test_what_cannot_be_the_same_has_the_mean_and_variance_of_each_channel(kind, net, x):
    net = nn.Sequential(net.conv, net.bn, nn.Conv2d(8, 8, 3).double(), net.last[1])
    conversion = convert(net, small(kind), calibration=x)
    for layers in (2, 4):
        theirs, mine = net[:layers](x), conversion.model[:layers](x)
        for moment in (torch.mean, torch.var):
            torch.testing.assert_close(moment(mine, (0, 2, 3)), moment(theirs, (0, 2, 3)), rtol=1e-9, atol=1e-9)
    assert {row.how for row in conversion.rows} == {"matched"}
    assert all(row.error > 1e-3 for row in conversion.rows)
    assert not conversion.exact
    assert conversion.error == pytest.approx(gap(net(x), conversion.model(x)))


def test_a_negative_gamma_stays_negative(net, x):
    assert (net.bn.weight < 0).any()
    converted = convert(net, "layer", calibration=x).model
    assert torch.equal(converted.bn.weight < 0, net.bn.weight < 0)


def test_without_a_calibration_batch_gamma_and_beta_are_taken_over(net):
    conversion = convert(net, "layer")
    assert {row.how for row in conversion.rows} == {"carried"}
    assert torch.equal(conversion.model.bn.weight, net.bn.weight)
    assert torch.equal(conversion.model.bn.bias, net.bn.bias)
    assert conversion.error is None
    assert conversion.rows[0].preserved == ("bias", "weight")


def test_statistics_are_gathered_where_the_new_norm_has_them_and_the_old_had_none(x):
    net = nn.Sequential(nn.GroupNorm(1, 3)).double().eval()
    norm = convert(net, "batch", calibration=x).model[0]
    torch.testing.assert_close(norm.running_mean, x.mean((0, 2, 3)))
    torch.testing.assert_close(norm.running_var, x.var((0, 2, 3)))
    assert norm.momentum == 0.1
    assert norm.num_batches_tracked == 0


def test_knobs_that_mean_the_same_are_the_old_norm_s_unless_asked_for():
    net = nn.Sequential(nn.BatchNorm2d(4, eps=1e-3, momentum=0.01))
    assert convert(net, "batch").model[0].momentum == 0.01
    assert convert(net, "layer").model[0].eps == 1e-3
    assert convert(net, {"kind": "layer", "eps": 1e-5}).model[0].eps == 1e-5
    assert convert(net, "filter_response").model[0].eps == 1e-6


def test_mode_dtype_and_frozenness_are_kept():
    net = nn.Sequential(nn.BatchNorm2d(4), nn.BatchNorm2d(4).eval(), nn.BatchNorm2d(4)).double()
    net[1].requires_grad_(requires_grad=False)
    net[2].bias.requires_grad_(requires_grad=False)
    first, second, third = convert(net, "layer").model
    assert [norm.training for norm in (first, second, third)] == [True, False, True]
    assert first.weight.dtype == torch.float64
    assert [p.requires_grad for norm in (first, second, third) for p in norm.parameters()] == [1, 1, 0, 0, 1, 0]


def test_a_model_on_meta_is_converted_there():
    net = Net().to("meta")
    converted = convert(net, {"kind": "group", "num_groups": 4}).model
    assert all(parameter.is_meta for parameter in converted.parameters())
    assert isinstance(converted.last[1], GroupNorm)


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = self.b = nn.BatchNorm2d(3)

    def forward(self, x):
        return self.b(self.a(x) + 1)


def test_a_norm_at_two_places_stays_one_norm(x):
    net = lived(Shared(), 6, 3, 4, 4)
    conversion = convert(net, "batch", calibration=x)
    assert conversion.model.a is conversion.model.b
    assert isinstance(conversion.model.a, BatchNorm)
    assert len(conversion.rows) == 1
    assert conversion.error < 1e-12
    assert same_bits(conversion.revert(), net)


def test_parameters_that_two_norms_shared_are_said_to_be_apart():
    net = nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4))
    net[2].weight = net[0].weight
    why = [row.why for row in convert(net, "layer").rows]
    assert why == [
        "it shared weight with 2; the new one has its own",
        "it shared weight with 0; the new one has its own",
        "",
    ]


def test_only_the_norms_that_are_asked_for_are_exchanged(net):
    conversion = convert(net, "layer", where=lambda path, _: path.startswith("blocks.1."))
    assert [row.path for row in conversion.rows] == ["blocks.1.bn1", "blocks.1.bn2"]
    assert isinstance(conversion.model.bn, nn.BatchNorm2d)


class Mixed(nn.Module):
    """Everything that cannot be exchanged."""

    def __init__(self):
        super().__init__()
        self.odd = nn.BatchNorm2d(6)
        self.own = MyOwnNorm()
        self.encoder = nn.TransformerEncoderLayer(6, 2, 8)
        self.read = nn.BatchNorm2d(8)

    def forward(self, x):
        return functional.layer_norm(self.odd(x), x.shape[1:]) * self.read.weight.sum()


def test_what_is_not_converted_says_why():
    net = Mixed()
    net.odd.register_forward_hook(lambda *_: None)
    conversion = convert(net, {"kind": "group", "num_groups": 4})
    why = {row.path or row.was: row.why for row in conversion.rows}
    assert {row.how for row in conversion.rows} == {"kept"}
    assert why["odd"] == (
        "num_groups must divide num_features, got num_groups 4 and num_features 6; take a divisor of 6, such as 3"
    )
    assert why["own"] == "MyOwnNorm is called a norm and is none that is known here"
    assert why["encoder.norm1"].startswith("torch's encoder layer hands its norms' weights to a fused kernel")
    assert why["read"] == "its parameters are read past it, by the forward of another module"
    assert why["functional.layer_norm"].startswith("it is a function that a forward calls")
    assert "it carried hooks" in convert(net, GroupNormSpec(num_groups=2)).rows[0].why


def test_a_norm_that_refuses_the_calibration_batch_is_kept_with_its_sentence(x):
    net = nn.Sequential(nn.BatchNorm2d(3), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3)).double().eval()
    first, second = convert(net, "instance", calibration=x).rows
    assert first.how == "matched"
    assert second.how == "kept"
    assert second.why.startswith("instance norm needs more than one pixel in a map, got 1")


def test_a_layer_that_the_batch_does_not_come_by_is_not_called_matched(x):
    net = Net().double().eval()
    net.unused = nn.BatchNorm2d(8).double()
    row = convert(net, "layer", calibration=x).rows[-1]
    assert (row.how, row.why) == ("carried", "the calibration batch does not come by it")


class FrozenBatchNorm2d(nn.Module):
    """As torchvision has it: all buffers."""

    def __init__(self, num_features: int):
        super().__init__()
        self.eps = 1e-5
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.rand(num_features) + 0.5)

    def forward(self, x):
        values = (self.running_mean, self.running_var, self.weight, self.bias)
        return functional.batch_norm(x, *values, training=False, eps=self.eps)


def test_a_frozen_batch_norm_is_one_and_stays_frozen(x):
    net = nn.Sequential(nn.Conv2d(3, 4, 1), FrozenBatchNorm2d(4)).double().eval()
    conversion = convert(net, "batch", calibration=x)
    assert conversion.exact
    assert conversion.error < 1e-12
    assert not any(parameter.requires_grad for parameter in conversion.model[1].parameters())
    assert fold(net).rows[0].into == "0"


def test_calibration_leaves_modes_alone_and_moves_no_statistics_of_the_original(net, x):
    net.train()
    net.blocks[0].eval()
    before = copy.deepcopy(net)
    converted = convert(net, "layer", calibration=x).model
    for model in (net, converted):
        assert model.training
        assert model.bn.training
        assert not model.blocks[0].bn1.training
    assert same_bits(net, before)


@pytest.mark.parametrize(
    ("layer", "to"),
    [
        (nn.GroupNorm(1, 4), {"kind": "layer", "affine": False}),
        (nn.BatchNorm2d(4), {"kind": "batch", "affine": False}),
        (nn.LayerNorm((4, 5, 5)), "layer"),
    ],
    ids=["gamma lost", "gamma lost in batch norm", "gamma per pixel"],
)
def test_the_same_norm_without_its_gamma_is_another_function(layer, to, x):
    layer = layer.double().eval()
    assert convert(layer, to).exact
    layer.weight.data.copy_(torch.rand(layer.weight.shape))
    (row,) = convert(layer, to).rows
    assert row.how == "carried"


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = BatchNorm(3)

    def forward(self, x):
        return self.norm(x, x[:, 0] > 0)


def test_a_norm_that_is_called_with_a_mask_gives_way_to_one_that_knows_masks():
    (row,) = convert(Masked(), "filter_response").rows
    assert (row.how, row.why) == (
        "kept",
        "it is called with 2 arguments, and FilterResponseNorm takes 1 in its place",
    )
    assert isinstance(convert(Masked(), "layer").model.norm, LayerNorm)


def test_a_channel_that_does_not_move_keeps_its_gamma(x):
    net = lived(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), 6, 3, 4, 4)
    net[0].weight.data[1] = 0
    norm = convert(net, "instance", calibration=x).model[1]
    assert norm.weight[1] == net[1].weight[1]
    torch.testing.assert_close(norm.bias[1], net(x)[0, 1, 0, 0])
    assert norm.weight[0] != net[1].weight[0]


def test_several_batches_are_one(net, x):
    whole = convert(net, "layer", calibration=x).model.state_dict()
    for calibration in ((x,), [x[:2], x[2:]], ((part,) for part in x.split(3)), DataLoader(TensorDataset(x), 2)):
        parts = convert(net, "layer", calibration=calibration).model.state_dict()
        assert all(torch.equal(parts[name], whole[name]) for name in whole)


def test_no_batch_is_refused(net):
    with pytest.raises(Refusal, match="a calibration must hold at least one batch, got 0"):
        convert(net, "layer", calibration=[])


@pytest.mark.parametrize("calibration", [{"x": torch.zeros(2, 3)}, [{"x": torch.zeros(2, 3)}]], ids=["one", "several"])
def test_a_batch_by_name_is_refused(net, calibration):
    with pytest.raises(Refusal, match="arguments by position, got a mapping of x"):
        convert(net, "layer", calibration=calibration)


def test_a_batch_of_no_samples_is_refused(net, x):
    with pytest.raises(Refusal, match="must hold at least one sample, got a batch of 0"):
        convert(net, "layer", calibration=x[:0])


def test_a_calibration_that_is_not_finite_matches_nothing(net, x):
    conversion = convert(net, "layer", calibration=torch.full_like(x, torch.nan))
    assert {row.how for row in conversion.rows} == {"carried"}
    assert all("some outputs are not finite" in row.why for row in conversion.rows)
    assert conversion.error == torch.inf
    assert all(parameter.isfinite().all() for parameter in conversion.model.parameters())


def test_a_model_that_has_not_seen_a_batch_is_refused(x):
    lazy = nn.Sequential(nn.LazyConv2d(4, 1), nn.LazyBatchNorm2d())
    for does in (lambda: convert(lazy, "layer", calibration=x), lambda: fold(lazy.eval())):
        with pytest.raises(Refusal, match="sizes are unknown until it has seen a batch; run the model once before"):
            does()


def test_to_none_the_norm_goes_into_the_layer_before_and_comes_back_out(net, x):
    conversion = convert(net, "none", calibration=x)
    assert [row.why for row in conversion.rows][:2] == ["folded into conv", "folded into blocks.0.conv1"]
    assert not torch.equal(conversion.model.conv.weight, net.conv.weight)
    assert same_bits(conversion.revert(), net)


def test_to_none_what_cannot_be_folded_is_gone_and_says_so(x):
    net = lived(nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()), 6, 3, 4, 4)
    (row,) = convert(net, "none", calibration=x).rows
    assert row.how == "carried"
    assert row.why.startswith("not folded: what comes before it is read by others too, or could not be recorded")


def test_what_is_trained_in_between_stays_when_the_norms_go_back(net):
    conversion = convert(net, {"kind": "group", "num_groups": 4})
    conversion.model.train()
    conversion.model.head.weight.data.fill_(7)
    reverted = conversion.revert()
    assert (reverted.head.weight == 7).all()
    assert torch.equal(reverted.bn.weight, net.bn.weight)
    assert reverted.bn.training
    assert not net.bn.training


@pytest.mark.parametrize("to", ["batchnorm", {"kind": "group", "groups": 2}, {"kind": "batch", "eps": "small"}])
def test_a_norm_that_is_not_on_the_menu_is_refused(to):
    with pytest.raises(Refusal, match=r"there is no norm of kind|cannot be had so"):
        convert(nn.BatchNorm2d(3), to)


def test_an_activation_that_a_layer_holds_stays_behind_the_new_norm(x):
    net = lived(nn.Sequential(BatchNormAct2d(3, nn.SiLU())), 6, 3, 4, 4)
    conversion = convert(net, "batch", calibration=x)
    assert [name for name, _ in conversion.model[0].named_children()] == ["norm", "act"]
    assert conversion.exact
    assert conversion.error < 1e-12
    again = convert(conversion.model, FilterResponseNormSpec(), calibration=x)
    assert isinstance(again.model[0].norm, FilterResponseNorm)
    assert not again.model[0].norm.tlu


def test_the_account_prints_as_a_table(net, x):
    conversion = convert(net, "layer", calibration=x)
    lines = str(conversion).splitlines()
    assert lines[0].split() == ["path", "was", "became", "how", "preserved", "error"]
    assert lines[1].startswith("bn            BatchNorm2d(8)  LayerNorm(8)  matched  bias, weight  ")
    assert lines[-1] == f"6 matched; outputs differ by {conversion.error:.1e} on the calibration batch"
    assert str(convert(nn.ReLU(), "layer")).endswith("no norm found")
