"""A norm that is about to take a layer's place."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from normcore.norms.norm import Norm
from normcore.surgery.channels_last import ChannelsLast
from normcore.surgery.fold import Pair
from normcore.surgery.known import Known
from normcore.surgery.plain import after
from normcore.surgery.relu import Relu


@dataclass(frozen=True)
class Candidate:
    """What stands at `path`, and what will."""

    path: str
    known: Known
    norm: Norm
    exact: bool
    """Whether it is the same function in evaluation as it is; otherwise a calibration batch has its say."""
    preserved: tuple[str, ...] = ()
    """Parameters and buffers that it took over."""
    remark: str = ""
    """What is to be known about it."""
    relu: Relu | None = None
    """The relu after what stands, which what will stand takes in."""
    pair: Pair | None = None
    """The linear layer that takes in what stands."""

    @property
    def activated_before(self) -> bool:
        """Whether what stands is its own non-linearity."""
        norm = self.known.norm
        return isinstance(norm, Norm) and norm.activates

    @property
    def gives_relu_back(self) -> bool:
        """Whether a relu has to follow what will stand, since what stands held one."""
        return self.activated_before and not self.norm.activates

    def place(self) -> nn.Module:
        """What is put at `path`: the norm, turned to the layer's shape, and followed by what the layer did afterwards
        unless the norm does that itself.
        """
        norm: nn.Module = ChannelsLast(self.norm) if self.known.channels_last else self.norm
        return norm if self.norm.activates else after(self.known, norm)
