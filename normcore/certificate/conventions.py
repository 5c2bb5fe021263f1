"""Which of the usual conventions a layer follows, measured from its outputs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from normcore.certificate.check import Check, NotTried, Observation, always, within
from normcore.certificate.design import design
from normcore.certificate.trial import VAST, Reach, Trial, largest, odd_part, output_of
from normcore.norms.claims import Claims


def _statistics(trial: Trial) -> Observation:
    return Observation("running" if trial.reach.statistics == "none" and trial.remembers else trial.reach.statistics)


def _taken_over(trial: Trial) -> Observation:
    return Observation(_set(trial.reach))


def _statistics_in_evaluation(trial: Trial) -> Observation:
    return Observation("moved by other samples" if trial.reach_in_evaluation.samples else "each sample by itself")


def variance(trial: Trial) -> Observation:
    """What a training pass divides by, from the outputs at inputs of variance one, or at the same values twice over."""
    if not _central(trial):
        return Observation("none")
    layer, x = trial.copy(), design(trial)
    squares = odd_part(layer, VAST * x).square()
    if largest(squares - squares.mean()) < 1e-6:
        if (error := abs(float(squares.mean()) - 1)) < 1e-6:
            return Observation("biased", error, 1e-6)
        m = 1 / (1 - float(squares.mean()))
        if 1.5 < m <= x.numel() and abs(m - round(m)) < 1e-3:
            return Observation("unbiased", abs(m - round(m)), 1e-3)
    # Biased moments are those of the distribution: the same whether it is given once or twice.
    x = trial.draw(scale=VAST)
    once, error = odd_part(layer, x), 0.0
    for dim in range(0, x.dim(), 2)[:2]:
        twice = odd_part(layer, torch.cat([x, x], dim)).narrow(dim, 0, x.shape[dim])
        error = max(error, largest(twice - once) / (largest(once) or 1.0))
    return Observation("biased" if error < 1e-6 else "neither", error, 1e-6)


def _three_times_over(trial: Trial) -> Observation:
    """No size of the batch is special: neither biased moments nor a sample's own know how often they are given."""
    if variance(trial).observed == "unbiased":
        raise NotTried("the factor of an unbiased variance depends on the size of the batch")
    x, error = trial.draw(), 0.0
    for training in (True, False):
        layer = trial.copy(training=training)
        with torch.no_grad():
            once, thrice = output_of(layer, x), output_of(layer, torch.cat([x, x, x]))
        error = max(error, largest(thrice - torch.cat([once, once, once])))
    return within(error, 1e-9)


def _running_variance(trial: Trial) -> Observation:
    """What a layer that has seen one batch for ever holds of it."""
    layer, x = _settled(trial, scale=1e6)
    own = variance(trial).observed
    if own == "none":
        return Observation("none")
    dims = [dim for dim in range(x.dim()) if dim != 1]
    corrections = {"biased": 0, "unbiased": 1}
    if isinstance(held := getattr(layer, "running_var", None), Tensor) and held.shape == trial.shape[1:2]:
        errors = {word: largest(held / x.var(dims, correction=c) - 1) for word, c in corrections.items()}
    else:
        m = x.numel() // x.shape[1]
        with torch.no_grad():
            ratio = output_of(trial.copy(), x).var(dims) / output_of(layer, x).var(dims)
        # What training divides by itself counts too.
        divided_by = m - corrections.get(own, 0)
        errors = {word: largest(ratio * (m - c) / divided_by - 1) for word, c in corrections.items()}
    word = min(errors, key=lambda name: errors[name])
    return Observation(word if errors[word] < 1e-6 else "neither", errors[word], 1e-6)


def _evaluation_approaches_training(trial: Trial) -> Observation:
    """After one batch for ever; where running variances are unbiased, up to the difference that this makes."""
    if not trial.remembers:
        layer, x = trial.copy(), trial.draw()
        return within(largest(layer(x) - layer.eval()(x)), 0.0)
    unbiased = trial.claims is None or trial.claims.running_variance == "unbiased"
    # The larger the batch, the less is what this makes.
    layer, x = _settled(trial, times=32 if unbiased else 1)
    with torch.no_grad():
        evaluated = output_of(layer, x)
        y = layer.train()(x)
        error = largest(evaluated - y)
    return within(error, largest(y) * (0.6 * x.shape[1] / x.numel() if unbiased else 1e-6))


def _momentum(trial: Trial) -> Observation:
    """How far the first batch moves the running statistics towards itself."""
    if not trial.remembers:
        raise NotTried("there are no running statistics")
    x, layer = 3 + 2 * trial.draw(5), trial.copy()
    born = _running(layer)
    with torch.no_grad():
        layer(x)
    first = _running(layer)
    settled = _running(_settle(trial.copy(), x))
    weights = []
    for name, start in born.items():
        whole = settled[name] - start
        if largest(whole) > 1e-3:
            moved = whole.abs() > 1e-3
            weights += ((first[name] - start)[moved] / whole[moved]).tolist()
    if not weights:
        raise NotTried("no buffer holds running statistics")
    spread = max(weights) - min(weights)
    return Observation(f"{sum(weights) / len(weights):.4g}" if spread < 1e-4 else "no single weight", spread, 1e-4)


def _central(trial: Trial) -> bool:
    """Whether it divides by what is left of the input without its mean: a vast mean then stays, or goes, unseen."""
    if trial.reach.statistics == "none":
        return False
    layer, x = trial.copy(), trial.draw()
    near, far = odd_part(layer, x), odd_part(layer, x + 1e6)
    return largest(far - near) < 1e-3 or largest(far) > 1e3


def _settled(trial: Trial, *, scale: float = 1.0, times: int = 1) -> tuple[nn.Module, Tensor]:
    if not trial.remembers:
        raise NotTried("there are no running statistics")
    x = scale * (3 + 2 * trial.draw(5))
    # Two samples over and over: a layer that normalizes parts of the batch sees the same in each.
    x = x[:2].repeat(times * (x.shape[0] // 2), *(1 for _ in x.shape[1:]))
    return _settle(trial.copy(), x), x


def _settle(layer: nn.Module, x: Tensor) -> nn.Module:
    """The layer in evaluation after so many passes over one batch that another moves it no more."""
    if isinstance(getattr(layer, "momentum", None), float):
        # The same place is reached whatever the pace.
        layer.momentum = 0.5  # type: ignore[assignment]
    with torch.no_grad():
        before = output_of(layer.eval(), x)
        for _ in range(100):
            layer.train()
            for _ in range(50):
                layer(x)
            after = output_of(layer.eval(), x)
            if largest(after - before) < 1e-9:
                return layer
            before = after
    raise NotTried("running statistics have not settled after 5000 passes over one batch")


def _running(layer: nn.Module) -> dict[str, Tensor]:
    """Its floating point buffers that are saved with it, in copies."""
    saved = layer.state_dict()
    running = {name: buffer for name, buffer in layer.named_buffers() if name in saved and buffer.is_floating_point()}
    return {name: buffer.detach().clone() for name, buffer in running.items()}


def _set(reach: Reach) -> str:
    words = [word for word in ("samples", "channels", "pixels") if getattr(reach, word)]
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words) or "nothing"


def _claimed_momentum(claims: Claims, layer: nn.Module) -> str:
    momentum = getattr(layer, "momentum", None)
    return f"{momentum:.4g}" if isinstance(momentum, float) and claims.statistics in {"batch", "running"} else ""


CHECKS = (
    Check("statistics", lambda claims, _: claims.statistics, _statistics),
    Check("moved in training by other", always(""), _taken_over),
    Check("statistics in evaluation", always("each sample by itself"), _statistics_in_evaluation),
    Check("variance", lambda claims, _: claims.variance if claims.variance != "none" else "", variance),
    Check(
        "same samples three times over",
        lambda claims, _: "" if claims.variance == "unbiased" else "yes",
        _three_times_over,
    ),
    Check(
        "running variance",
        lambda claims, _: claims.running_variance if claims.running_variance != "none" else "",
        _running_variance,
    ),
    Check("evaluation approaches training", always("yes"), _evaluation_approaches_training),
    Check("weight of the newest batch", _claimed_momentum, _momentum),
)
