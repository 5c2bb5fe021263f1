"""A check: one property, what the claims say of it, and how it is tried."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from normcore.certificate.trial import Trial
from normcore.norms.claims import Claims


class NotTried(Exception):
    """A property that means nothing for this layer, or cannot be seen here; the text says why."""


@dataclass(frozen=True, slots=True)
class Observation:
    """What a trial saw."""

    observed: str
    """In the words in which it would be claimed."""
    error: float | None = None
    """The largest deviation; an infinite one stands for what is not a number."""
    tolerance: float | None = None
    """The largest deviation that passes."""
    also: tuple[str, ...] = ()
    """Weaker claims that this meets as well."""

    def meets(self, claimed: str) -> bool:
        """Whether a claim in these words holds."""
        return claimed in {self.observed, *self.also}


def within(error: float, tolerance: float) -> Observation:
    """`yes` where the error is within the tolerance, else `no`.

    Example:
        >>> within(1e-12, 1e-9).observed, within(float("nan"), 1e-9).observed
        ('yes', 'no')
    """
    return Observation("yes" if error <= tolerance else "no", error, tolerance)


@dataclass(frozen=True, slots=True)
class Check:
    """A property and how it is tried."""

    property: str
    """Its name."""
    claimed: Callable[[Claims, nn.Module], str]
    """What the claims, or the layer's own numbers, say of it, in the words of an observation; empty where nothing."""
    observe: Callable[[Trial], Observation]
    """Tries it."""
    promised: bool = False
    """Whether a layer without claims owes it too."""
    vital: bool = False
    """Whether nothing else is to be tried where it fails."""


def always(words: str) -> Callable[[Claims, nn.Module], str]:
    """What every set of claims says."""
    return lambda _claims, _layer: words
