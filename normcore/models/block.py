"""The block that every model is made of: a linear map, then norm, noise and activation, and dropout at the end."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from normcore.models.dropout import Dropout
from normcore.norms.norm import Norm
from normcore.refusal import Refusal

Part = Callable[[int], nn.Module]
"""Makes a norm or a noise for a number of channels."""

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh}


@dataclass(frozen=True)
class Site:
    """What stands after every linear map of a model."""

    norm: Part
    """Makes the norm."""
    noise: Part
    """Makes the noise, which stands right after the norm, also after none."""
    activation: str = "relu"
    """relu, sigmoid or tanh."""
    norm_placement: str = "before"
    """Whether norm and noise stand before or after the activation."""
    dropout: float = 0.0
    """Probability with which a value that leaves a block is dropped; with 0 there is no layer for it."""


def block(linear: tuple[str, nn.Module], num_features: int, site: Site) -> nn.Sequential:
    """A linear map with its site: norm, noise, activation ("before") or activation, norm, noise ("after"), and dropout.

    The parts have the same names wherever they stand, so that arms which differ in norm, noise or placement share the
    names, and with them the initial values, of everything else. A norm that holds its own non-linearity stands for norm
    and activation both: a relu gives way to it.

    Args:
        linear: Name and module of the map.
        num_features: Channels that the map gives.
        site: What stands after the map.

    Raises:
        Refusal: The norm holds its own non-linearity, and the activation is not relu or stands before the norm.

    Example:
        >>> from normcore.noise.none import NoNoise
        >>> from normcore.norms.layer import LayerNorm
        >>> site = Site(LayerNorm, NoNoise, activation="tanh", norm_placement="after")
        >>> [name for name, _ in block(("linear", nn.Linear(2, 3)), 3, site).named_children()]
        ['linear', 'activation', 'norm', 'noise']
    """
    norm, noise, activation = activated(num_features, site).named_children()
    parts = [linear, norm, noise, activation] if site.norm_placement == "before" else [linear, activation, norm, noise]
    if site.dropout > 0:
        parts.append(("dropout", Dropout(site.dropout)))
    return nn.Sequential(OrderedDict(parts))


def activated(num_features: int, site: Site) -> nn.Sequential:
    """A site by itself, without the map it follows: norm, noise, activation, whatever the placement.

    Raises:
        Refusal: The norm holds its own non-linearity, and the activation is not relu or stands before the norm.
    """
    norm = site.norm(num_features)
    activation = ACTIVATIONS[site.activation]()
    if isinstance(norm, Norm) and norm.activates:
        _check_relu_before(norm, site)
        activation = nn.Identity()
    return nn.Sequential(OrderedDict(norm=norm, noise=site.noise(num_features), activation=activation))


def _check_relu_before(norm: Norm, site: Site) -> None:
    if site.activation != "relu" or site.norm_placement != "before":
        raise Refusal(
            "norm-activates",
            f"{type(norm).__name__} holds its own non-linearity and takes the place of a relu that follows it, got "
            f"activation {site.activation} with norm_placement {site.norm_placement}; take relu and before, or a norm "
            f"without a non-linearity",
        )
