"""The relu after a norm, where the new norm is its own non-linearity."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from normcore.norms.batch import BatchNorm
from normcore.norms.filter_response import FilterResponseNorm
from normcore.surgery.convert import convert
from tests.normcore.surgery.nets import Block, Net, gap, lived
from tests.normcore.surgery.test_known import BatchNormAct2d


def twin(block: Block, x: torch.Tensor) -> torch.Tensor:
    """The forward of a block, written out, whose first relu is gone and whose second stays."""
    return functional.relu(block.bn2(block.conv2(block.bn1(block.conv1(x)))) + x)


def test_a_shared_relu_goes_from_one_call_site_and_stays_at_the_other():
    block = lived(Block(4), 6, 4, 5, 5)
    x = torch.randn(6, 4, 5, 5, dtype=torch.float64)
    conversion = convert(block, "filter_response", calibration=x)
    converted = conversion.model
    assert conversion.rewritten == ("",)
    assert converted.bn1.tlu
    assert not converted.bn2.tlu
    assert conversion.rows[1].why == "without tlu: no relu follows that reads it alone"
    assert torch.equal(converted(x), twin(converted, x))
    assert (converted(x) >= 0).all()


def test_a_rewritten_module_is_still_what_it_was():
    block = lived(Block(4), 6, 4, 5, 5)
    converted = convert(block, "filter_response").model
    x = torch.randn(6, 4, 5, 5, dtype=torch.float64)
    assert isinstance(converted, Block)
    assert converted.expansion == 1
    assert [name for name, _ in converted.named_children()] == [
        *(name for name, _ in block.named_children()),
        "bn1_activation",
    ]
    copied = copy.deepcopy(converted)
    copied.load_state_dict(converted.state_dict())
    assert torch.equal(copied(x), converted(x))
    assert gap(converted(x), torch.compile(converted, backend="eager", fullgraph=True)(x)) < 1e-14
    assert gap(converted(x), torch.export.export(converted, (x,)).module()(x)) < 1e-14
    converted.train()(x).sum().backward()
    assert converted.bn1.tau.grad is not None


def test_every_way_to_write_a_relu(net, x):
    conversion = convert(net, "filter_response", calibration=x)
    tlu = {row.path: conversion.model.get_submodule(row.path).tlu for row in conversion.rows}
    assert tlu == {
        "bn": True,
        "blocks.0.bn1": True,
        "blocks.0.bn2": False,
        "blocks.1.bn1": True,
        "blocks.1.bn2": False,
        "last.1": True,
    }
    assert conversion.rewritten == ("", "blocks.0", "blocks.1")
    assert isinstance(conversion.model.last[2], nn.Identity)
    # With thresholds at zero the unit is a relu: the net with relus and without tlu is the same function.
    plain = convert(net, {"kind": "filter_response", "tlu": False}, calibration=x)
    assert plain.rewritten == ()
    assert gap(plain.model(x), conversion.model(x)) < 1e-12


def test_filter_response_norm_gives_its_relu_back(net, x):
    there = convert(net, "filter_response", calibration=x).model
    back = convert(there, "batch", calibration=x)
    assert isinstance(back.model.bn_activation, nn.ReLU)
    assert isinstance(back.model.blocks[0].bn1_activation, nn.ReLU)
    assert isinstance(back.model.last[2], nn.ReLU)
    (batch,) = (module for module in [back.model.last[1]] if isinstance(module, BatchNorm))
    assert batch.running_var.isfinite().all()
    assert (back.model.last(torch.randn(2, 8, 4, 4).double()) >= 0).all()


def test_a_relu_that_has_no_place_to_go_back_to_follows_the_norm_itself():
    net = nn.Sequential(FilterResponseNorm(3), nn.Conv2d(3, 3, 1))
    converted = convert(net, "batch").model
    assert [type(part) for part in converted[0]] == [BatchNorm, nn.ReLU]
    assert isinstance(convert(net, "layer").model[0][1], nn.ReLU)
    assert isinstance(convert(net, {"kind": "filter_response", "eps": 1e-3}).model[0], FilterResponseNorm)


class OwnRelu(nn.Module):
    """A relu that is read elsewhere too, one after an addition, and one behind noise-like identities."""

    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm2d(3)

    def forward(self, x):
        y = self.bn(x)
        return functional.relu(y) + y


class ByMode(OwnRelu):
    def forward(self, x):
        y = functional.relu(self.bn(x))
        return y * 2 if self.training else y


@pytest.mark.parametrize(
    ("net", "why"),
    [
        (OwnRelu(), "no relu follows that reads it alone"),
        (nn.Sequential(nn.BatchNorm2d(3), nn.ReLU6()), "no relu follows that reads it alone"),
        (ByMode(), "the relu after it is shared or a function, and the forward of the model cannot be rewritten"),
        (nn.Sequential(BatchNormAct2d(3, nn.SiLU())), "the layer itself goes on with SiLU, not with a relu"),
        (nn.ModuleList([nn.BatchNorm2d(3)]), "its caller could not be recorded, and with it what comes after"),
    ],
    ids=["read by two", "relu6", "by mode", "silu", "no caller"],
)
def test_without_a_relu_to_take_in_there_is_no_threshold_and_a_reason(net, why):
    conversion = convert(net, "filter_response")
    (row,) = conversion.rows
    assert row.why.startswith(f"without tlu: {why}")
    assert row.became == "FilterResponseNorm(3, tlu=False)"


def test_a_relu_that_a_layer_holds_is_taken_in():
    net = nn.Sequential(BatchNormAct2d(3, nn.ReLU()))
    (layer,) = convert(net, "filter_response").model
    assert isinstance(layer, FilterResponseNorm)
    assert layer.tlu


def test_a_relu_of_its_own_gives_way_to_an_identity_past_other_identities():
    net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Sequential(nn.BatchNorm2d(3), nn.Identity()), nn.Sequential(nn.ReLU()))
    conversion = convert(net, "filter_response")
    assert isinstance(conversion.model[2][0], nn.Identity)
    assert conversion.rewritten == ()


def test_a_converted_and_reverted_net_is_the_original(net, x):
    before = copy.deepcopy(net)
    reverted = convert(net, "filter_response", calibration=x).revert()
    assert [type(module) for module in reverted.modules()] == [type(module) for module in Net().modules()]
    assert list(reverted.state_dict()) == list(before.state_dict())
    assert torch.equal(reverted(x), before(x))
