"""Sums over values, against torch over all of them at once and against closed forms."""

import math
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from normcore.probes import tally
from normcore.probes.tally import Tally, effective_rank, mean_correlation


def gaussian(rows, channels, seed=0):
    return torch.randn(rows, channels, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def expected(rows):
    """The definitions, on all values at once."""
    x = rows.double().flatten()
    apart = x - x.mean()
    var = apart.square().mean()
    covariance = torch.cov(rows.double().T, correction=0)
    correlation = torch.corrcoef(rows.double().T).abs()
    count = len(correlation)
    shares = torch.linalg.eigvalsh(covariance) / covariance.trace()
    return {
        "mean": x.mean().item(),
        "var": var.item(),
        "skew": (apart**3).mean().item() / var.item() ** 1.5,
        "p15": x.quantile(0.15).item(),
        "p50": x.quantile(0.5).item(),
        "p85": x.quantile(0.85).item(),
        "effective_rank": math.exp(-sum(p * math.log(p) for p in shares.tolist())),
        "correlation": (correlation.sum() - count).item() / (count * (count - 1)),
    }


def statistics_of(*calls, slope=None):
    of = Tally(slope)
    for rows in calls:
        of.take(rows)
    return of.statistics()


@pytest.mark.parametrize("cuts", [(500,), (200, 300), (1, 2, 497), (0, 500)])
def test_however_the_values_come_in_they_are_those_of_all_at_once(cuts):
    rows = (gaussian(500, 4) @ gaussian(4, 4, seed=1)).exp()
    found = statistics_of(*rows.split(list(cuts)))
    for name, value in expected(rows).items():
        assert found[name] == pytest.approx(value, rel=1e-10), name


def test_many_parts_have_exact_moments_and_the_percentiles_of_a_sample(monkeypatch):
    monkeypatch.setattr(tally, "PART", 1000)
    monkeypatch.setattr(tally, "SAMPLED_VALUES", 500)
    monkeypatch.setattr(tally, "SAMPLED_ROWS", 100)
    rows = gaussian(4000, 4) @ torch.tensor(
        [[1, 0, 0, 0], [0.9, 0.5, 0, 0], [0, 0, 1, 0], [0, 0, 0, 2]], dtype=torch.float64
    )
    found, exact = statistics_of(*rows.split([10, 90, 2000, 300, 1600])), expected(rows)
    for name in ("mean", "var", "skew"):
        assert found[name] == pytest.approx(exact[name], rel=1e-9), name
    # Of a fifth of the values and rows.
    for name in ("p15", "p50", "p85", "effective_rank", "correlation"):
        assert found[name] == pytest.approx(exact[name], abs=0.06), name
        assert found[name] != pytest.approx(exact[name], rel=1e-9), name


def test_the_sample_meets_all_channels_alike(monkeypatch):
    monkeypatch.setattr(tally, "SAMPLED_VALUES", 1000)
    # Every third value would be of the first channel, and every fourth row of the same pixels of a row.
    rows = torch.tensor([[0.0, 1.0, 2.0]]).expand(1000, 3)
    assert statistics_of(rows)["p50"] == 1.0


@pytest.mark.parametrize(("channels", "width"), [(1, 32), (3, 32), (1, 28), (40, 28), (96, 24)])
def test_the_sample_meets_all_columns_of_a_map_alike(channels, width):
    # As maps of `width` pixels that slope from one side to the other, in all channels alike.
    samples = 2**20 // (channels * width * width)
    slope = torch.linspace(-1, 1, width).view(1, 1, width, 1).expand(samples, width, width, channels)
    tally = Tally()
    tally.take(slope.reshape(-1, channels))
    found = tally.statistics()
    for p in (15, 50, 85):
        assert found[f"p{p}"] == pytest.approx(p / 50 - 1, abs=2.1 / width)
    # Of the rows that covariances are of.
    assert tally._centers.mean().item() == pytest.approx(0, abs=0.02)
    variances = tally._second.diagonal() / tally._rows
    assert variances.mean().item() == pytest.approx(found["var"], rel=0.02)


def test_a_large_mean_does_not_drown_the_moments():
    x = gaussian(400, 3).abs()
    found, far = statistics_of(x), statistics_of(x[:100] + 1e6, x[100:] + 1e6)
    assert far["mean"] == pytest.approx(found["mean"] + 1e6, rel=1e-12)
    for name in ("var", "skew", "effective_rank", "correlation"):
        assert far[name] == pytest.approx(found[name], rel=1e-8), name


def test_half_precision_is_summed_in_float64():
    rows = torch.full((3000, 2), 300.0, dtype=torch.float16)
    rows[::2] = -300.0
    assert statistics_of(rows)["var"] == 90000.0


def test_a_known_distribution_gives_its_moments():
    count = 40_000
    # Quantiles of the exponential distribution, whose mean and variance are 1, whose skew is 2.
    p = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    found = statistics_of(-torch.log1p(-p).unsqueeze(1))
    closed = {"mean": 1.0, "var": 1.0, "skew": 2.0} | {f"p{p}": -math.log(1 - p / 100) for p in (15, 50, 85)}
    for name, value in closed.items():
        assert found[name] == pytest.approx(value, rel=0.01), name


def test_gaussians_give_their_correlation_and_their_rank():
    r, rows = 0.6, gaussian(4000, 2)
    rows = torch.linalg.solve_triangular(
        torch.linalg.cholesky(torch.cov(rows.T)), (rows - rows.mean(0)).T, upper=False
    ).T
    mixed = torch.stack([rows[:, 0], r * rows[:, 0] + math.sqrt(1 - r**2) * rows[:, 1]], 1)
    found = statistics_of(mixed)
    assert found["correlation"] == pytest.approx(r, rel=1e-10)
    shares = ((1 + r) / 2, (1 - r) / 2)
    assert found["effective_rank"] == pytest.approx(math.exp(-sum(p * math.log(p) for p in shares)), rel=1e-10)
    assert statistics_of(rows)["correlation"] == pytest.approx(0, abs=1e-12)


def test_effective_rank_lies_between_one_and_the_channels_and_counts_equal_directions():
    values = torch.tensor([3.0, 3.0, 0.0, 0.0], dtype=torch.float64)
    turn = torch.linalg.qr(gaussian(4, 4)).Q
    assert effective_rank(turn @ values.diag() @ turn.T) == pytest.approx(2, rel=1e-9)
    assert math.isnan(effective_rank(torch.zeros(2, 2)))
    assert math.isnan(effective_rank(torch.full((2, 2), torch.nan)))


def test_channels_that_do_not_vary_have_no_correlation():
    covariance = torch.tensor([[1.0, 0.5, 0.0], [0.5, 1.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    assert mean_correlation(covariance) == 0.5
    assert math.isnan(mean_correlation(covariance[1:, 1:]))


def test_covariances_are_of_the_first_256_channels():
    rows = gaussian(300, 300)
    of = Tally()
    of.take(rows)
    found = of.statistics()
    assert found["correlation"] == pytest.approx(expected(rows[:, :256])["correlation"], rel=1e-9)
    assert found["channels"] == 256


def test_rows_of_another_width_count_for_all_but_the_channels():
    narrow, wide = gaussian(60, 2), gaussian(30, 5, seed=1)
    found = statistics_of(narrow, wide)
    assert found["correlation"] == pytest.approx(expected(narrow)["correlation"], rel=1e-9)
    together = torch.cat([narrow.flatten(), wide.flatten()])
    assert (found["mean"], found["var"]) == pytest.approx((together.mean().item(), together.var(correction=0).item()))


def test_nothing_gives_nothing():
    found = statistics_of(torch.zeros(0, 3))
    assert found.pop("channels") == 0
    assert all(map(math.isnan, found.values()))
    found = statistics_of(torch.full((5, 2), 7.0))
    assert (found["mean"], found["var"]) == (7.0, 0.0)
    assert all(math.isnan(found[name]) for name in ("skew", "effective_rank", "correlation", "saturated"))


def test_what_a_module_overwrites_has_been_seen_before():
    of, rows = Tally(), torch.full((4, 2), -1.0)
    of.take(rows)
    rows.relu_()
    assert of.statistics()["mean"] == -1.0


def test_tallies_of_several_devices_are_one_of_all():
    rows = (gaussian(300, 3) @ gaussian(3, 3, seed=1)).exp()
    parts, sent, together = rows.split([100, 200]), {}, threading.Barrier(2)

    def of_device(device):
        def average(tensors):
            sent[device] = [each.clone() for each in tensors]
            together.wait()
            for tensor, one, other in zip(tensors, sent[0], sent[1], strict=True):
                tensor.copy_((one + other) / 2)
            together.wait()

        of = Tally(lambda x: (x > 1).double())
        of.take(parts[device])
        of.share(average)
        return of.statistics()

    with ThreadPoolExecutor(2) as threads:
        found, other = threads.map(of_device, range(2))
    assert found == other
    exact = expected(rows)
    for name in ("mean", "var", "skew", "effective_rank", "correlation"):
        assert found[name] == pytest.approx(exact[name], rel=1e-9), name
    for name in ("p15", "p50", "p85"):
        assert found[name] == pytest.approx(sum(expected(part)[name] for part in parts) / 2), name
    assert found["saturated"] == (rows <= 1).double().mean()
