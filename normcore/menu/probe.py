"""What all probes on the menu have."""

from __future__ import annotations

import importlib
from typing import Any, ClassVar, Literal

from normcore.menu.occasions import Every
from normcore.menu.spec import Spec

BnMode = Literal["batch", "frozen"]
"""Whether layers with running statistics normalize by the batch, as in training, or by these as they stand."""


class AnyProbeSpec(Spec):
    """What all probes have."""

    figure: ClassVar[str] = ""
    """`module:function` that draws the readings of trainings side by side."""
    over_devices: ClassVar[bool] = True
    """Whether on several devices it sees the batch of all of them."""
    copies: ClassVar[int] = 2
    """Copies of the parameters that a reading holds, at most."""

    def knobs(self) -> dict[str, Any]:
        """The fields that the probe takes as keyword arguments: everything but `kind` and when it reads."""
        return {name: value for name, value in super().knobs().items() if name != "every"}

    @classmethod
    def drawing(cls) -> Any:
        """The function that `figure` names."""
        module, _, name = cls.figure.partition(":")
        return getattr(importlib.import_module(module), name)


class RecurringProbeSpec(AnyProbeSpec):
    """A probe that looks again and again."""

    every: Every = 50
    """Steps between two readings, or one of the occasions: epochs, log_spaced, budget."""
