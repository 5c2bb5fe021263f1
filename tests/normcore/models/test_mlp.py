import torch

from normcore.models.mlp import Mlp
from normcore.noise.none import NoNoise
from normcore.norms.layer import LayerNorm


def test_is_linear_norm_activation_for_each_hidden_layer_then_a_linear_classifier():
    model = Mlp((2, 3, 3), 5, norm=LayerNorm, noise=NoNoise, seed=0, hidden=(7, 6), activation="tanh")
    x = torch.randn(4, 2, 3, 3)
    h = x.reshape(4, 18)
    for block in model.blocks:
        h = torch.nn.functional.layer_norm(h @ block.linear.weight.T + block.linear.bias, (block.norm.num_features,))
        h = torch.tanh(h)
    torch.testing.assert_close(model(x), h @ model.classifier.weight.T + model.classifier.bias)


def test_number_of_parameters():
    model = Mlp((1, 8, 8), 10, norm=LayerNorm, noise=NoNoise, seed=0, hidden=(32, 16))
    expected = (64 * 32 + 32) + 2 * 32 + (32 * 16 + 16) + 2 * 16 + (16 * 10 + 10)
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


def test_without_hidden_layers_it_is_a_linear_classifier():
    model = Mlp((1, 8, 8), 10, norm=LayerNorm, noise=NoNoise, seed=0, hidden=())
    assert sum(parameter.numel() for parameter in model.parameters()) == 650
    assert model(torch.randn(4, 1, 8, 8)).shape == (4, 10)
