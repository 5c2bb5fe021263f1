"""ResNet (He et al. 2016, arXiv:1512.03385) and its pre-activation form (He et al. 2016, arXiv:1603.05027)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from normcore.models.block import ACTIVATIONS, Part, Site, activated, block
from normcore.models.initialize import Conv2d, Linear, initialize
from normcore.models.residual import PaddedShortcut, ResidualBlock
from normcore.norms.norm import Norm
from normcore.refusal import Refusal

STAGES: dict[int, tuple[tuple[int, int], ...]] = {
    **{6 * n + 2: ((16, n), (32, n), (64, n)) for n in (1, 3, 5, 7, 9, 18)},
    18: ((64, 2), (128, 2), (256, 2), (512, 2)),
    34: ((64, 3), (128, 4), (256, 6), (512, 3)),
    50: ((64, 3), (128, 4), (256, 6), (512, 3)),
}
"""Channels and blocks of the stages by depth: section 4.2 of the paper, and its table 1."""

BOTTLENECKS = {50}
"""Depths whose branches are 1x1, 3x3 and 1x1, the last with four times the channels."""

EXPANSION = 4
"""Channels that a bottleneck gives for each of those inside."""


class ResNet(nn.Module):
    """Residual blocks in stages of half the size and twice the channels, average pooling, one linear classifier.

    A branch is conv, norm, activation, conv, norm (`post`), and the sum of branch and shortcut is activated. With `pre`
    norm and activation come before each convolution: a block begins with them, the branch ends with its convolution,
    the sum is left alone, and the last sum is normed and activated before the pooling; the first block is given the
    stem's activation, and a projection what its branch is given. So both forms hold the same convolutions by the same
    names, and norms change place. A noise stands after every norm. Convolutions keep their bias with every norm, so
    that arms share their parameters. In bottlenecks the 3x3 convolution has the stride, not the first 1x1, which would
    throw three pixels of four away.

    Args:
        shape: Channels, height and width of an image.
        num_classes: Logits.
        norm: Makes the norm of a convolution.
        noise: Makes the noise of a convolution.
        seed: Of the initial weights.
        depth: 8, 20, 32, 44, 56 or 110, three stages; or 18, 34 or 50, four.
        width: Multiplier on the channels of every convolution; the product is rounded, and at least 1.
        activation: relu, sigmoid or tanh.
        activation_placement: post or pre.
        stem: small (3x3) or large (7x7 with stride 2, then a 3x3 max pooling with stride 2).
        shortcut: padding or projection, where a block changes the shape; none for that of the paper: padding with
            three stages, projection with four.
        zero_last_gamma: Let the scale of the last norm of each branch start at zero, with `post`, where it has one.
        dropout: Probability of zero for what goes from one convolution of a branch to the next, after its activation.
        init: How weights are drawn, glorot or he.
        device: Where the parameters live.
        dtype: Of the parameters.

    Raises:
        Refusal: With `post`, a norm that holds its own non-linearity: the last norm of a branch stands before an
            addition, and the relu it would replace after it.

    Example:
        >>> from normcore.noise.none import NoNoise
        >>> from normcore.norms.batch import BatchNorm
        >>> model = ResNet((3, 32, 32), 10, norm=BatchNorm, noise=NoNoise, seed=0, depth=20, width=0.25)
        >>> len(model.blocks), model(torch.zeros(4, 3, 32, 32)).shape
        (9, torch.Size([4, 10]))
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        num_classes: int,
        *,
        norm: Part,
        noise: Part,
        seed: int,
        depth: int = 20,
        width: float = 1.0,
        activation: str = "relu",
        activation_placement: str = "post",
        stem: str = "small",
        shortcut: str | None = None,
        zero_last_gamma: bool = False,
        dropout: float = 0.0,
        init: str = "he",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        builder = _Builder(
            site=Site(norm, noise, activation),
            dropout=dropout,
            conv=partial(Conv2d, device=device, dtype=dtype),
            pre=activation_placement == "pre",
            projects=shortcut == "projection" or (shortcut is None and len(STAGES[depth]) == 4),
        )
        plans = block_plans(depth, width)
        self.stem = stem_of(builder.conv, shape[0], plans[0].before, stem, builder.site)
        self.blocks = nn.Sequential(*(builder.block(f"blocks.{number}", plan) for number, plan in enumerate(plans)))
        channels = plans[-1].after
        if builder.pre:
            self.blocks.append(activated(channels, builder.site))
        elif zero_last_gamma:
            _zero_last_gammas(self.blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = Linear(channels, num_classes, device=device, dtype=dtype)
        initialize(self, init=init, seed=seed)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(N, num_classes)` of images `(N, C, H, W)`."""
        logits: Tensor = self.classifier(self.pool(self.blocks(self.stem(x))).flatten(1))
        return logits


@dataclass(frozen=True)
class BlockPlan:
    """The shapes of one block."""

    before: int
    """Channels that it is given."""
    inner: int
    """Channels between its convolutions."""
    after: int
    """Channels that it gives."""
    stride: int

    def convs(self, conv: Callable[..., Conv2d]) -> list[Conv2d]:
        """Its convolutions in their order: two of 3x3; or, where it gives more channels than are inside, a bottleneck.

        Args:
            conv: Makes one.
        """
        if self.after == self.inner:
            first = conv(self.before, self.inner, 3, stride=self.stride, padding=1)
            return [first, conv(self.inner, self.inner, 3, padding=1)]
        middle = conv(self.inner, self.inner, 3, stride=self.stride, padding=1)
        return [conv(self.before, self.inner, 1), middle, conv(self.inner, self.after, 1)]


def block_plans(depth: int, width: float) -> list[BlockPlan]:
    """The blocks of a net.

    Args:
        depth: One of `STAGES`.
        width: Multiplier on the channels.

    Example:
        >>> for plan in block_plans(8, 1):
        ...     print(plan)
        BlockPlan(before=16, inner=16, after=16, stride=1)
        BlockPlan(before=16, inner=32, after=32, stride=2)
        BlockPlan(before=32, inner=64, after=64, stride=2)
    """
    plans: list[BlockPlan] = []
    for stage, (full_width, blocks) in enumerate(STAGES[depth]):
        inner = max(1, round(width * full_width))
        after = inner * EXPANSION if depth in BOTTLENECKS else inner
        for number in range(blocks):
            before = plans[-1].after if plans else inner
            plans.append(BlockPlan(before, inner, after, 2 if stage > 0 and number == 0 else 1))
    return plans


def stem_of(conv: Callable[..., Conv2d], before: int, after: int, size: str, site: Site) -> nn.Sequential:
    """The first convolution with its site: small, 3x3, or large, 7x7 with stride 2 and then a pooling."""
    if size == "small":
        return block(("conv", conv(before, after, 3, padding=1)), after, site)
    made = block(("conv", conv(before, after, 7, stride=2, padding=3)), after, site)
    made.add_module("pool", nn.MaxPool2d(3, stride=2, padding=1))
    return made


@dataclass(frozen=True)
class _Builder:
    """The parts of a net, as its knobs want them."""

    site: Site
    conv: Callable[..., Conv2d]
    pre: bool
    """Norm and activation before each convolution."""
    projects: bool
    """A 1x1 convolution where a block changes the shape."""
    dropout: float

    def block(self, path: str, plan: BlockPlan) -> ResidualBlock:
        """A block as planned."""
        *first, last = plan.convs(self.conv)
        inside = [block(("conv", conv), plan.inner, replace(self.site, dropout=self.dropout)) for conv in first]
        return ResidualBlock(
            # The first block is given what the stem's norm and activation made.
            activated(plan.before, self.site) if self.pre and path != "blocks.0" else nn.Identity(),
            nn.Sequential(*inside, self._mapped(f"{path}.branch.{len(inside)}", last, plan.after)),
            self._shortcut(path, plan),
            nn.Identity() if self.pre else ACTIVATIONS[self.site.activation](),
            shares_entry=self.pre and self.projects and (plan.before, 1) != (plan.after, plan.stride),
        )

    def _shortcut(self, path: str, plan: BlockPlan) -> nn.Module:
        if (plan.before, 1) == (plan.after, plan.stride):
            return nn.Identity()
        if self.projects:
            conv = self.conv(plan.before, plan.after, 1, stride=plan.stride)
            return self._mapped(f"{path}.shortcut", conv, plan.after)
        return PaddedShortcut(plan.after - plan.before, stride=plan.stride)

    def _mapped(self, path: str, conv: Conv2d, num_features: int) -> nn.Sequential:
        """A convolution right before the addition: with its norm and noise, if those follow convolutions."""
        if self.pre:
            return nn.Sequential(OrderedDict(conv=conv))
        norm = self.site.norm(num_features)
        if isinstance(norm, Norm) and norm.activates:
            raise Refusal(
                "activation-after-sum",
                f"{type(norm).__name__} holds its own non-linearity and takes the place of a relu that follows it, got "
                f"activation_placement post, where an addition stands between them; take pre, or a norm without a "
                f"non-linearity",
                layer=f"{path}.norm",
            )
        return nn.Sequential(OrderedDict(conv=conv, norm=norm, noise=self.site.noise(num_features)))


def _zero_last_gammas(blocks: nn.Sequential) -> None:
    for residual in blocks:
        assert isinstance(residual, ResidualBlock)
        gamma = getattr(residual.branch[-1].norm, "weight", None)
        if isinstance(gamma, nn.Parameter):
            nn.init.zeros_(gamma)
