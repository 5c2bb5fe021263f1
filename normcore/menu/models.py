"""Models on the menu."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from normcore.menu.spec import Activation, Dropout, Form, Init, NormPlacement, Spec


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
    dropout: Dropout = 0.0
    """Probability of zero for each value that leaves a layer, after its activation; 0 is no dropout."""
    init: Init = "glorot"
    """How weights are drawn: glorot (Glorot & Bengio 2010) or he (He et al. 2015); biases start at zero."""
    target: ClassVar[str] = "normcore.models.mlp:Mlp"
    takes: ClassVar[frozenset[Form]] = frozenset({"images", "sequences", "vectors"})

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
    dropout: Dropout = 0.0
    """Probability of zero for each value that leaves an activation, before a pooling; 0 is no dropout."""
    init: Init = "glorot"
    """How weights are drawn: glorot (Glorot & Bengio 2010) or he (He et al. 2015); biases start at zero."""
    target: ClassVar[str] = "normcore.models.vgg:Vgg"
    takes: ClassVar[frozenset[Form]] = frozenset({"images"})

    @property
    def name(self) -> str:
        """What a person calls it: `vgg11` or, at a quarter of the width, `vgg11w0.25`."""
        return f"vgg{self.depth}" + (f"w{self.width:g}" if self.width != 1 else "")


class ResNetSpec(Spec):
    """ResNet (He et al. 2016): 3x3 convolutions in pairs, or bottlenecks of three, each with a way around it."""

    kind: Literal["resnet"] = "resnet"
    depth: Literal[8, 20, 32, 44, 56, 110, 18, 34, 50] = 20
    """Layers with weights: 8 to 110 in the nets for CIFAR-10, of three stages; 18, 34, 50 in those for ImageNet."""
    width: Annotated[float, Field(gt=0, le=64)] = 1.0
    """Multiplier on the channels of every convolution."""
    activation: Activation = "relu"
    activation_placement: Literal["post", "pre"] = "post"
    """post: after the addition (He et al. 2016a); pre: norm and activation before each convolution (2016b)."""
    stem: Literal["small", "large"] = "small"
    """small: a 3x3 convolution, for images of 32 pixels; large: 7x7 with stride 2 and a pooling, for 224."""
    shortcut: Literal["padding", "projection"] | None = None
    """Where a block changes the shape: zeros in new channels, or a 1x1 convolution; none: the paper's for the depth."""
    zero_last_gamma: bool = False
    """Let the scale of each branch's last norm start at zero, so that every block starts without its branch."""
    dropout: Dropout = 0.0
    """Probability of zero for each value between two convolutions of a branch (as in wide ResNets); 0 is no dropout."""
    init: Init = "he"
    """How weights are drawn: glorot (Glorot & Bengio 2010) or he (He et al. 2015); biases start at zero."""
    target: ClassVar[str] = "normcore.models.resnet:ResNet"
    takes: ClassVar[frozenset[Form]] = frozenset({"images"})

    @model_validator(mode="after")
    def _zero_gamma_needs_post(self) -> Self:
        if self.zero_last_gamma and self.activation_placement == "pre":
            raise ValueError(
                "zero_last_gamma needs a norm at the end of each branch, got activation_placement pre, where it stands "
                "before a relu that would never open; take post, or zero_last_gamma false"
            )
        return self

    @property
    def name(self) -> str:
        """What a person calls it: `resnet20`, and with activations first `preresnet20`."""
        pre = "pre" if self.activation_placement == "pre" else ""
        return f"{pre}resnet{self.depth}" + (f"w{self.width:g}" if self.width != 1 else "")


class PlainSpec(Spec):
    """ResNets without their shortcuts (He et al. 2016), which get harder to train with depth, norms or not."""

    kind: Literal["plain"] = "plain"
    depth: Literal[8, 20, 32, 44, 56, 110, 18, 34, 50] = 20
    """Layers with weights, those of the resnet of the same depth, and with its initial values."""
    width: Annotated[float, Field(gt=0, le=64)] = 1.0
    """Multiplier on the channels of every convolution."""
    activation: Activation = "relu"
    norm_placement: NormPlacement = "before"
    """Whether the norm stands before or after the activation."""
    stem: Literal["small", "large"] = "small"
    """small: a 3x3 convolution, for images of 32 pixels; large: 7x7 with stride 2 and a pooling, for 224."""
    dropout: Dropout = 0.0
    """Probability of zero for each value between two convolutions, where the resnet has it; 0 is no dropout."""
    init: Init = "he"
    """How weights are drawn: glorot (Glorot & Bengio 2010) or he (He et al. 2015); biases start at zero."""
    target: ClassVar[str] = "normcore.models.plain:Plain"
    takes: ClassVar[frozenset[Form]] = frozenset({"images"})

    @property
    def name(self) -> str:
        """What a person calls it: `plain20`."""
        return f"plain{self.depth}" + (f"w{self.width:g}" if self.width != 1 else "")


class TransformerSpec(Spec):
    """Transformer encoder (Vaswani et al. 2017) with the mean token's classifier; on images a small ViT."""

    kind: Literal["transformer"] = "transformer"
    depth: Annotated[int, Field(ge=1, le=256)] = 4
    """Blocks of self-attention and MLP."""
    width: Annotated[int, Field(ge=1, le=65536)] = 64
    """Numbers of a token."""
    heads: Annotated[int, Field(ge=1, le=1024)] = 4
    """Of the attention; must divide the width."""
    mlp_ratio: Annotated[int, Field(ge=1, le=64)] = 2
    """Hidden width of the MLPs over the width."""
    patch: Annotated[int, Field(ge=1, le=1024)] = 4
    """Pixels of the side of a patch, for images."""
    norm_placement: Literal["pre", "post"] = "pre"
    """pre: each branch begins with a norm, and one stands behind the last block; post: after each addition."""
    activation: Activation = "relu"
    """Inside the MLPs."""
    dropout: Dropout = 0.0
    """Probability of zero for each value that a branch adds, and of what the first block is given; 0 is no dropout."""
    init: Init = "glorot"
    """How weights are drawn: glorot (Glorot & Bengio 2010) or he (He et al. 2015); biases start at zero."""
    target: ClassVar[str] = "normcore.models.transformer:Transformer"
    takes: ClassVar[frozenset[Form]] = frozenset({"images", "sequences", "tokens"})

    @property
    def name(self) -> str:
        """What a person calls it: `transformer4x64`, and with norms after the additions `postnorm-transformer4x64`."""
        return ("postnorm-" if self.norm_placement == "post" else "") + f"transformer{self.depth}x{self.width}"


class LstmSpec(Spec):
    """LSTM (Hochreiter & Schmidhuber 1997) with norms inside its recurrence: BN-LSTM or LN-LSTM, by the norm."""

    kind: Literal["lstm"] = "lstm"
    hidden: Annotated[int, Field(ge=1, le=65536)] = 128
    """Values of a state, and of a token's vector."""
    gamma: Annotated[float, Field(gt=0, le=10)] = 0.1
    """Initial value of all gammas of a BN-LSTM (Cooijmans et al. 2017); those of layer norm start at 1."""
    dropout: Dropout = 0.0
    """Probability of zero for each value of the state that the classifier is given; 0 is no dropout."""
    init: Literal["orthogonal", "identity"] = "orthogonal"
    """How the cell's weights are drawn: orthogonal, or with the identity from state to candidate state."""
    target: ClassVar[str] = "normcore.models.lstm:LstmClassifier"
    takes: ClassVar[frozenset[Form]] = frozenset({"sequences", "tokens"})

    @property
    def name(self) -> str:
        """What a person calls it: `lstm128`."""
        return f"lstm{self.hidden}"


class TimmSpec(Spec):
    """Any net of timm by its name, without pretrained weights; its norms are exchanged. Needs the extra `timm`."""

    kind: Literal["timm"] = "timm"
    name: Annotated[str, Field(max_length=100, pattern=r"^[a-z0-9][A-Za-z0-9_.]*$")] = "resnet18"
    """As `timm.list_models()` calls it."""
    target: ClassVar[str] = "normcore.models.timm:Timm"
    takes: ClassVar[frozenset[Form]] = frozenset({"images"})


class InceptionSmallSpec(Spec):
    """A small Inception after that of the batch norm paper (Ioffe & Szegedy 2015), a quarter as wide, for 32x32."""

    kind: Literal["inception_small"] = "inception_small"
    width: Annotated[float, Field(gt=0, le=64)] = 1.0
    """Multiplier on the channels of every convolution."""
    activation: Activation = "relu"
    norm_placement: NormPlacement = "before"
    """Whether the norm stands before or after the activation."""
    dropout: Dropout = 0.0
    """Probability of zero for each value that the classifier is given; 0 is no dropout."""
    init: Init = "he"
    """How weights are drawn: glorot (Glorot & Bengio 2010) or he (He et al. 2015); biases start at zero."""
    target: ClassVar[str] = "normcore.models.inception_small:InceptionSmall"
    takes: ClassVar[frozenset[Form]] = frozenset({"images"})

    @property
    def name(self) -> str:
        """What a person calls it: `inception` or, at half the width, `inceptionw0.5`."""
        return "inception" + (f"w{self.width:g}" if self.width != 1 else "")


class DeepLinearSpec(Spec):
    """The deep linear net of Santurkar et al. 2018, appendix A: square matrices with norms between, no activations."""

    kind: Literal["deep_linear"] = "deep_linear"
    depth: Annotated[int, Field(ge=1, le=1000)] = 25
    """Linear layers, the last included, which has no norm."""
    width: Annotated[int, Field(ge=1, le=1000)] = 10
    """Units of every layer: as many as the data's vectors and targets have numbers."""
    init: Init = "glorot"
    """How weights are drawn: glorot (Glorot & Bengio 2010) or he (He et al. 2015)."""
    target: ClassVar[str] = "normcore.models.deep_linear:DeepLinear"
    takes: ClassVar[frozenset[Form]] = frozenset({"vectors"})

    @property
    def name(self) -> str:
        """What a person calls it: `linear25x10`."""
        return f"linear{self.depth}x{self.width}"


ModelSpec = (
    MlpSpec
    | VggSpec
    | ResNetSpec
    | PlainSpec
    | DeepLinearSpec
    | InceptionSmallSpec
    | TimmSpec
    | TransformerSpec
    | LstmSpec
)
