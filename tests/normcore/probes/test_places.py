"""Where non-linearities are found, and which values are seen there."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from normcore.norms.evonorm_s0 import EvoNormS0
from normcore.norms.filter_response import FilterResponseNorm
from normcore.probes.places import watched
from normcore.recurrent.batch_lstm import BatchLstmCell
from normcore.recurrent.layer_lstm import LayerLstmCell
from normcore.recurrent.lstm import Lstm
from normcore.recurrent.lstm_cell import LstmCell


def seen_of(model, *args, **kwargs):
    with watched(model) as seen, torch.no_grad():
        model(*args, **kwargs)
    return seen.places


def average(tensors):
    """Of a single device."""


@pytest.mark.parametrize(
    ("module", "is_flat"),
    [
        (nn.ReLU(), lambda x: x <= 0),
        (nn.ReLU(inplace=True), lambda x: x <= 0),
        (nn.ReLU6(), lambda x: (x <= 0) | (x >= 6)),
        (nn.LeakyReLU(0.1), lambda x: x > torch.inf),
        # s (1 - s) < 0.05 / 4 and 1 - t^2 < 0.05.
        (nn.Sigmoid(), lambda x: x.sigmoid() * (1 - x.sigmoid()) < 0.0125),
        (nn.Tanh(), lambda x: x.tanh().abs() > math.sqrt(0.95)),
        (nn.Softplus(), lambda x: x.sigmoid() < 0.05),
        (nn.ELU(), lambda x: x < math.log(0.05)),
    ],
    ids=lambda value: str(value) if isinstance(value, nn.Module) else "",
)
def test_saturated_is_where_the_slope_is_under_a_twentieth_of_its_largest(module, is_flat):
    x = torch.linspace(-9, 9, 1000, dtype=torch.float64).reshape(250, 4)
    (place,) = seen_of(nn.Sequential(module), x.clone()).values()
    found = place.tally.statistics()
    assert found["saturated"] == pytest.approx(is_flat(x).double().mean().item(), abs=1e-12)
    assert found["mean"] == pytest.approx(0, abs=1e-12)


def test_a_channel_is_dead_that_is_zero_for_all_samples_and_pixels():
    x = torch.full((3, 4, 2, 2), -1.0)
    x[2, 1, 0, 1] = 5.0
    model = nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), nn.ReLU())
    model[0].weight.data.copy_(torch.eye(4)[:, :, None, None])
    (place,) = seen_of(model, x).values()
    assert place.dead(average) == 0.75
    with watched(model) as seen, torch.no_grad():
        model(x)
        model(-x)
    assert seen.places["1"].dead(average) == 0


def test_only_rectifiers_have_dead_channels():
    for module in (nn.Tanh(), nn.GELU()):
        assert math.isnan(seen_of(nn.Sequential(module), torch.zeros(2, 2))["0"].dead(average))


def test_channels_are_behind_a_linear_map_the_last_dimension_and_else_the_second():
    x = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    behind_linear = nn.Sequential(nn.Linear(5, 7), nn.ReLU())
    for model, channels in ((behind_linear, 7), (nn.Sequential(nn.Conv1d(3, 4, 1), nn.ReLU()), 4)):
        place = seen_of(model, x)["1"]
        assert place.tally.statistics()["channels"] == len(place.alive) == channels


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.map, self.activation = nn.Linear(1, 1), nn.ReLU()

    def forward(self, x, mask=None):
        return self.activation(self.map(x))


def test_padding_does_not_count():
    model = Tokens()
    nn.init.ones_(model.map.weight)
    nn.init.zeros_(model.map.bias)
    x = torch.tensor([[[1.0], [2.0], [100.0]], [[3.0], [-100.0], [100.0]]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    place = seen_of(model, x, mask=mask)["activation"]
    found = place.tally.statistics()
    assert (found["mean"], found["p50"], found["saturated"]) == (2.0, 2.0, 0.0)
    negative = seen_of(model, torch.where(mask[:, :, None], -x, x), mask=mask)["activation"]
    assert negative.dead(average) == 1.0
    assert seen_of(model, x)["activation"].tally.statistics()["saturated"] == pytest.approx(1 / 6)


def test_a_norm_that_activates_is_seen_by_what_it_gives():
    x = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    norm = FilterResponseNorm(3)
    with torch.no_grad():
        norm.tau.copy_(torch.tensor([0.5, -100.0, 100.0]))
        y = norm(x)
    (place,) = seen_of(nn.Sequential(norm), x).values()
    found = place.tally.statistics()
    assert found["mean"] == pytest.approx(y.double().mean().item(), rel=1e-6)
    assert place.dead(average) == pytest.approx(1 / 3)
    assert math.isnan(found["saturated"])
    assert list(seen_of(nn.Sequential(FilterResponseNorm(3, tlu=False), nn.ReLU()), x)) == ["1"]
    (place,) = seen_of(nn.Sequential(EvoNormS0(3, num_groups=3)), x).values()
    assert math.isnan(place.dead(average))


def test_without_a_non_linearity_it_is_the_maps_that_are_seen():
    model = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Linear(3, 2))
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    places = seen_of(model, x)
    assert list(places) == ["0", "2"]
    assert places["2"].tally.statistics()["mean"] == pytest.approx(model(x).mean().item(), rel=1e-5)
    assert seen_of(nn.Flatten(), x) == {}


@pytest.mark.parametrize("kind", [LstmCell, LayerLstmCell, BatchLstmCell])
def test_an_lstms_gates_and_cell_are_seen_over_all_real_time_steps(kind):
    generator = torch.Generator().manual_seed(0)
    cell = kind(3, 4, max_length=5) if kind is BatchLstmCell else kind(3, 4)
    lstm, x, lengths = Lstm(cell).double(), torch.randn(6, 5, 3, generator=generator).double(), torch.arange(6) % 4 + 2
    given = {torch.sigmoid: [], torch.tanh: []}

    class Calls(torch.overrides.TorchFunctionMode):
        """What the cell's functions are given, by their order: f, i, g, o, c at every time step."""

        def __torch_function__(self, function, types, args=(), kwargs=None):
            if function in given:
                given[function].append(args[0].detach())
            return function(*args, **(kwargs or {}))

    with Calls(), torch.no_grad():
        lstm(x, lengths)
    sigmoids, tanhs = given[torch.sigmoid], given[torch.tanh]
    twins = {"f": sigmoids[::3], "i": sigmoids[1::3], "g": tanhs[::2], "o": sigmoids[2::3], "c": tanhs[1::2]}
    places = seen_of(lstm, x, lengths)
    assert list(places) == [f"cell.{name}" for name in "ifgoc"]
    for name, values in twins.items():
        real = torch.cat([value[lengths > time] for time, value in enumerate(values)])
        found = places[f"cell.{name}"].tally.statistics()
        assert found["mean"] == pytest.approx(real.mean().item(), rel=1e-9), name
        assert found["var"] == pytest.approx(real.var(correction=0).item(), rel=1e-9), name
        threshold = math.atanh(math.sqrt(0.95)) * (2 if name in "ifo" else 1)
        assert found["saturated"] == (real.abs() > threshold).double().mean().item(), name


def test_hooks_are_gone_after_an_error_too():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), FilterResponseNorm(2), Lstm(LstmCell(2, 2)))
    with pytest.raises(ZeroDivisionError), watched(model):
        raise ZeroDivisionError
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_a_module_that_is_called_as_a_function_is_not_seen():
    class Functional(nn.Linear):
        def forward(self, x):
            return functional.relu(super().forward(x))

    assert list(seen_of(nn.Sequential(Functional(2, 2), nn.Tanh()), torch.zeros(1, 2))) == ["1"]
