"""Which layers hold weights, in which order they run, what precedes them and where their activations are tapped."""

import pytest
import torch
from torch import nn

from normcore.build import build_model
from normcore.noise.noise import start_step
from normcore.probes.weight_layers import check_layers, chosen, in_forward_order, weights_of
from normcore.refusal import Refusal
from normcore.spec import JobSpec


class Backwards(nn.Module):
    """Registers last what it runs first, and runs it twice."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(3, 2)
        self.norm = nn.LayerNorm(3)
        self.first = nn.Linear(3, 3)
        self.unused = nn.Linear(3, 3)

    def forward(self, x):
        return self.last(self.first(self.norm(self.first(x))))


def names(model, layer):
    all_names = [name for name, _ in model.named_parameters()]
    return {all_names[place] for place in layer.preceding}


def test_the_order_is_that_of_first_use_and_not_of_registration():
    model = Backwards()
    first, last = in_forward_order(model, lambda: model(torch.ones(1, 3)))
    assert (first.path, last.path) == ("first", "last")
    assert names(model, first) == set()
    assert names(model, last) == {"first.weight", "first.bias", "norm.weight", "norm.bias"}
    assert first.tap is model.norm
    assert last.tap is model.last
    assert first.weights == (model.first.weight,)


def built(**parts):
    model = build_model(JobSpec.model_validate({"data": {"kind": "digits"}} | parts))
    start_step(model, 0, 0)
    return model


@pytest.mark.parametrize("placement", ["before", "after"])
def test_a_norm_behind_a_layer_precedes_the_next_and_its_noise_is_the_tap(placement):
    model = built(
        model={"kind": "vgg", "width": 0.0625, "norm_placement": placement},
        norm={"kind": "batch"},
        noise={"kind": "santurkar"},
    )
    order = in_forward_order(model, lambda: model(torch.randn(2, 1, 32, 32)))
    assert [layer.path for layer in order] == [*(f"blocks.{i}.conv" for i in range(8)), "classifier"]
    assert names(model, order[1]) == {
        f"blocks.0.{name}" for name in ("conv.weight", "conv.bias", "norm.weight", "norm.bias")
    }
    assert [layer.tap for layer in order] == [*(block.noise for block in model.blocks), model.classifier]


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_the_cell_of_an_lstm_stands_where_its_first_time_step_does(norm):
    data = {"kind": "digits", "arrange": "tokens"}
    model = built(model={"kind": "lstm", "hidden": 4}, data=data, norm={"kind": norm})
    embedding, cell, classifier = in_forward_order(model, lambda: model(torch.ones(2, 5, dtype=torch.int64)))
    assert (embedding.path, cell.path, classifier.path) == ("embedding", "lstm.cell", "classifier")
    assert cell.weights == (model.lstm.cell.weight_ih, model.lstm.cell.weight_hh)
    assert names(model, cell) == {"embedding.weight"}
    assert names(model, classifier) == {n for n, _ in model.named_parameters() if not n.startswith("classifier")}
    assert cell.tap is model.noise


def test_a_transformer_runs_its_embedding_attention_and_mlp_in_turn():
    model = built(model={"kind": "transformer", "depth": 1, "width": 8, "heads": 2}, norm={"kind": "layer_channels"})
    order = in_forward_order(model, lambda: model(torch.randn(2, 1, 32, 32)))
    inner = ("attention.inner.qkv", "attention.inner.out", "mlp.inner.0", "mlp.inner.2")
    assert [layer.path for layer in order] == ["embedding.conv", *(f"blocks.0.{path}" for path in inner), "classifier"]
    assert order[1].tap is model.get_submodule("blocks.0.attention.inner.qkv")
    assert order[2].tap is model.get_submodule("blocks.0.mlp.site.noise")


@pytest.mark.parametrize("kind", ["weight_norm", "spectral", "standardized", "fixup"])
def test_weights_behind_parametrizations_are_their_layers(kind):
    model = built(model={"kind": "resnet", "depth": 8, "width": 0.25}, norm={"kind": "none"}, weight={"kind": kind})
    plain = built(model={"kind": "resnet", "depth": 8, "width": 0.25}, norm={"kind": "none"})
    of_plain = [weight[0].shape for weight in weights_of(plain).values()]
    assert [weights[0].shape for weights in weights_of(model).values()] == of_plain
    assert all(len(weights) == 1 for weights in weights_of(model).values())
    order = in_forward_order(model, lambda: model(torch.randn(2, 1, 32, 32)))
    assert len(order) == len(of_plain)
    own = {id(weight) for weight in order[3].weights}
    assert not own & {id(list(model.parameters())[place]) for place in order[3].preceding}


def test_attention_whose_weights_another_module_reads_is_a_layer_without_a_tap():
    model = nn.MultiheadAttention(4, 2)
    x = torch.ones(3, 1, 4)
    inner, out = in_forward_order(model, lambda: model(x, x, x))
    assert (inner.path, out.path, out.tap) == ("", "out_proj", None)
    assert names(model, out) == {"in_proj_weight", "in_proj_bias"}


def test_norms_biases_and_frozen_weights_are_no_layers():
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm((2, 2)), nn.Linear(2, 2).requires_grad_(False), nn.PReLU())
    assert list(weights_of(model)) == ["0"]


def test_a_shared_weight_is_that_of_the_first_layer():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2, bias=False), nn.Linear(2, 1))
    model[2].weight = model[0].weight
    order = in_forward_order(model, lambda: model(torch.ones(1, 2)))
    assert [layer.path for layer in order] == ["0", "3"]


@pytest.mark.parametrize(
    ("count", "layers", "numbers"),
    [
        (25, 2, [9, 17]),
        (14, 2, [5, 10]),
        (9, 1, [5]),
        (25, 5, [4, 9, 13, 17, 22]),
        (3, 5, [1, 2, 3]),
        (3, "all", [1, 2, 3]),
    ],
)
def test_layers_are_spread_evenly_and_two_are_those_of_the_paper(count, layers, numbers):
    model = nn.Sequential(*(nn.Linear(1, 1) for _ in range(count)))
    order = in_forward_order(model, lambda: model(torch.ones(1, 1)))
    assert [layer.path for layer in chosen(order, layers)] == [str(number - 1) for number in numbers]


def test_paths_are_read_in_the_order_of_the_pass_and_must_be_of_layers():
    model = Backwards()
    order = in_forward_order(model, lambda: model(torch.ones(1, 3)))
    assert [layer.path for layer in chosen(order, ("last", "first"))] == ["first", "last"]
    check_layers(model, ("last", "first"))
    with pytest.raises(Refusal, match=r"got 'norm'; this model has last, first, unused"):
        check_layers(model, ("last", "norm"))


def test_of_several_passes_the_first_is_looked_at():
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2))
    (layer,) = in_forward_order(model, lambda: [model(torch.randn(3, 2)) for _ in range(2)])
    assert layer.tap is model[1]
