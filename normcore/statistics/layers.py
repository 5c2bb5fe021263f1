"""Which layers evaluate with running statistics, and how to gather those of each."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from normcore.norms.gathering import Gathers, GathersItself, Moments, channel_moments, mean_and_var
from normcore.norms.norm import Norm


def running_statistics(module: nn.Module) -> dict[str, Tensor]:
    """A layer's own buffers whose names begin with `running_`, as torch names them and as we do.

    Example:
        >>> list(running_statistics(nn.BatchNorm2d(3)))
        ['running_mean', 'running_var']
        >>> running_statistics(nn.BatchNorm2d(3, track_running_stats=False))
        {}
    """
    return {name: value for name, value in module.named_buffers(recurse=False) if name.startswith("running_")}


def has_running_statistics(module: nn.Module) -> bool:
    """Whether a layer normalizes by running statistics in evaluation."""
    return bool(running_statistics(module))


def gathering(module: nn.Module) -> Gathers | None:
    """What gathers the running statistics of a layer; None where nobody here knows how.

    Known are layers that say it themselves (`normcore.norms.gathering.Gathers`), torch's batch norms with those derived
    from them, and our norms that keep a mean, a variance or both per channel.
    """
    if isinstance(module, Gathers):
        return module
    kept = running_statistics(module)
    if not isinstance(module, _BatchNorm | Norm) or not kept or not kept.keys() <= {"running_mean", "running_var"}:
        return None
    return ByChannel(module) if all(value.dim() == 1 for value in kept.values()) else None


def gathering_itself(module: nn.Module) -> GathersItself | None:
    """The layer itself, where it gathers its running statistics alone."""
    return module if isinstance(module, GathersItself) else None


@dataclass(frozen=True, slots=True)
class ByChannel:
    """Gathers `running_mean` and `running_var`, or the one of them that a layer keeps."""

    layer: nn.Module

    @property
    def momentum(self) -> float | None:
        """Weight of the newest batch; None where all count alike."""
        return self.layer.momentum  # type: ignore[return-value]

    def reset_statistics(self) -> None:
        """Put the running statistics back to 0 and 1."""
        with torch.no_grad():
            for name, value in running_statistics(self.layer).items():
                value.fill_(float(name == "running_var"))

    def moments(self, x: Tensor, mask: Tensor | None = None) -> Moments:
        """Those of an input."""
        return channel_moments(x, mask)

    def statistics(self, moments: Moments, *, unbiased: bool) -> dict[str, Tensor]:
        """The buffers' values."""
        mean, var = mean_and_var(moments, unbiased=unbiased)
        both = {"running_mean": mean, "running_var": var}
        return {name: both[name] for name in running_statistics(self.layer)}
