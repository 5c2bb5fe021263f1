"""Directions in the space of weights, against singular values and norms of filters."""

import pytest
import torch
from torch import nn

from normcore.build import build_model
from normcore.probes import kept_weights
from normcore.probes.directions import NORMS, coordinates, filter_normalized, principal
from normcore.probes.kept_weights import vector
from normcore.spec import JobSpec


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    "spec",
    [
        {"model": {"kind": "vgg", "width": 0.0625}, "norm": {"kind": "batch"}, "data": {"kind": "digits"}},
        {
            "model": {"kind": "transformer", "depth": 1, "width": 8, "heads": 2},
            "norm": {"kind": "layer"},
            "data": {"kind": "digits", "arrange": "rows", "size": 8},
        },
    ],
    ids=["vgg", "transformer"],
)
def test_each_filter_of_a_direction_is_as_long_as_the_models_and_vectors_and_norms_stand_still(spec):
    model = build_model(JobSpec.model_validate(spec))
    found = filter_normalized(model, draw()).split([p.numel() for p in model.parameters()])
    norms = {id(p) for module in model.modules() if isinstance(module, NORMS) for p in module.parameters()}
    assert norms
    moved = 0
    for parameter, piece in zip(model.parameters(), found, strict=True):
        direction = piece.view(parameter.shape)
        if parameter.dim() == 1 or id(parameter) in norms:
            assert not direction.any()
            continue
        moved += 1
        for d_f, theta_f in zip(direction, parameter.detach(), strict=True):
            assert d_f.norm().item() == pytest.approx(theta_f.double().norm().item(), rel=1e-12)
    assert moved > 3


def test_torchs_own_norms_stand_still_whatever_their_shape():
    model = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm((2, 6)))
    assert not filter_normalized(model, draw())[-24:].any()


def test_the_direction_is_that_of_the_draw_and_another_draw_is_another():
    model = nn.Linear(5, 3)
    assert torch.equal(filter_normalized(model, draw()), filter_normalized(model, draw()))
    assert not torch.equal(filter_normalized(model, draw()), filter_normalized(model, draw(1)))
    # Standard normal numbers before they are scaled: not, say, all positive.
    assert filter_normalized(nn.Linear(1000, 1), draw())[:1000].mean().abs() < 0.01


def test_a_filter_of_zeros_does_not_move():
    model = nn.Linear(3, 2)
    nn.init.zeros_(model.weight)
    assert not filter_normalized(model, draw()).any()


def trajectory(*singular_values, steps=6, size=50):
    """Vectors whose differences from the end have these singular values."""
    generator = draw(5)
    left = torch.linalg.qr(torch.randn(steps, steps, generator=generator, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64)).Q
    end = torch.randn(size, generator=generator, dtype=torch.float64)
    count = len(singular_values)
    scale = torch.tensor(singular_values, dtype=torch.float64)
    return list(left[:, :count] * scale @ right[:, :count].T + end), end, right[:, :count]


@pytest.mark.parametrize("chunk", [7, 1 << 20])
def test_the_leading_directions_are_the_singular_vectors(chunk, monkeypatch):
    monkeypatch.setattr(kept_weights, "CHUNK", chunk)
    path, end, right = trajectory(5.0, 3.0, 1.0)
    x, y = principal(path, end)
    for found, expected in ((x, right[:, 0]), (y, right[:, 1])):
        assert found.norm().item() == pytest.approx(1, rel=1e-12)
        assert (found @ expected).abs().item() == pytest.approx(1, rel=1e-12)
        along = torch.stack(path).sub(end) @ found
        assert along[along.abs().argmax()] > 0
    place, along_x, in_plane = coordinates(path, end, x, y)
    assert torch.allclose(place, torch.stack([(torch.stack(path) - end) @ d for d in (x, y)], 1))
    assert along_x.item() == pytest.approx(25 / 35, rel=1e-12)
    assert in_plane.item() == pytest.approx(34 / 35, rel=1e-12)


def test_a_path_in_a_plane_is_explained_to_one():
    path, end, _ = trajectory(2.0, 0.1)
    _, _, in_plane = coordinates(path, end, *principal(path, end))
    assert in_plane.item() == pytest.approx(1, abs=1e-12)


def test_directions_that_are_not_at_right_angles_give_coordinates_too():
    end, x = torch.ones(4, dtype=torch.float64), torch.tensor([2.0, 0, 0, 0], dtype=torch.float64)
    y = torch.tensor([1.0, 1, 0, 0], dtype=torch.float64)
    path = [end + 3 * x - 2 * y, end + x + y]
    place, _, in_plane = coordinates(path, end, x, y)
    assert torch.allclose(place, torch.tensor([[3.0, -2], [1, 1]], dtype=torch.float64))
    assert in_plane.item() == pytest.approx(1)


@pytest.mark.parametrize("singular_values", [(), (1.0,)], ids=["nothing moved", "a line"])
def test_a_path_that_spans_no_plane_gives_no_directions(singular_values):
    path, end, _ = trajectory(*singular_values)
    with pytest.raises(ValueError, match="must span a plane with it, got 6 of them that do not; lower every, or take"):
        principal(path, end)


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_steps_give_no_directions(count):
    path, end, _ = trajectory(2.0, 1.0)
    with pytest.raises(ValueError, match=f"got {count} of them"):
        principal(path[:count], end)


def test_no_path_has_no_coordinates():
    end = vector([torch.ones(3)])
    place, along_x, in_plane = coordinates([], end, torch.eye(3)[0].double(), torch.eye(3)[1].double())
    assert place.shape == (0, 2)
    assert along_x.isnan()
    assert in_plane.isnan()
