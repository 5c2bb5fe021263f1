"""Models on the menu."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from normcore.menu.spec import Activation, Init, NormPlacement, Spec


class MlpSpec(Spec):
    """Fully connected layers, each with a norm, then a linear classifier."""

    kind: Literal["mlp"] = "mlp"
    hidden: Annotated[tuple[Annotated[int, Field(ge=1, le=1_000_000)], ...], Field(strict=False, max_length=256)] = (
        128,
        128,
    )
    """Widths of the hidden layers."""
    activation: Activation = "relu"
    norm_placement: NormPlacement = "before"
    """Whether the norm stands before or after the activation."""
    init: Init = "glorot"
    """How weights are drawn: glorot (Glorot & Bengio 2010) or he (He et al. 2015); biases start at zero."""
    target: ClassVar[str] = "normcore.models.mlp:Mlp"

    @property
    def name(self) -> str:
        """What a person calls it: `mlp128x128`."""
        widths = [str(width) for width in self.hidden]
        if len(widths) > 6:
            widths = [*widths[:3], f"({len(widths)} layers)"]
        return "mlp" + "x".join(widths)


class VggSpec(Spec):
    """VGG (Simonyan & Zisserman 2015) for small images: 3x3 convolutions, five poolings, one linear classifier."""

    kind: Literal["vgg"] = "vgg"
    depth: Literal[11, 13, 16, 19] = 11
    """Layers with weights in the original net: configurations A, B, D, E."""
    width: Annotated[float, Field(gt=0, le=64)] = 1.0
    """Multiplier on the channels of every convolution."""
    activation: Activation = "relu"
    norm_placement: NormPlacement = "before"
    """Whether the norm stands before or after the activation."""
    init: Init = "glorot"
    """How weights are drawn: glorot (Glorot & Bengio 2010) or he (He et al. 2015); biases start at zero."""
    target: ClassVar[str] = "normcore.models.vgg:Vgg"

    @property
    def name(self) -> str:
        """What a person calls it: `vgg11` or, at a quarter of the width, `vgg11w0.25`."""
        return f"vgg{self.depth}" + (f"w{self.width:g}" if self.width != 1 else "")


ModelSpec = MlpSpec | VggSpec
