"""Nets of timm (Wightman, pytorch-image-models), with the norms of the shelf."""

from __future__ import annotations

import importlib
from collections import OrderedDict
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from normcore.menu.asked_norm import asked_norm
from normcore.menu.spec import Spec
from normcore.models.block import Part
from normcore.norms.none import NoNorm
from normcore.norms.norm import Norm
from normcore.refusal import Refusal
from normcore.seeds import stream_seed
from normcore.surgery.channels_last import ChannelsLast
from normcore.surgery.convert import convert
from normcore.surgery.known import Known, norms_of
from normcore.surgery.plain import after
from normcore.surgery.tree import Tree


class NormPart(Protocol):
    """A norm class with its knobs, as `functools.partial` holds them."""

    func: Any
    keywords: dict[str, Any]


class Timm(nn.Module):
    """A net of timm, without pretrained weights, each of its norms exchanged for another and followed by a noise.

    The norms are exchanged by `normcore.convert`, with the conventions of the menu wherever a knob is given; with norm
    `none` the identity stands in their places. The net's activations and initial values are its authors'. The values
    come from a stream of the job's seed, in the order in which the net asks for them, so arms with other norms share
    them; the global generator is left alone, and the hub is not asked.

    Args:
        shape: Channels, height and width of an image.
        num_classes: Logits.
        norm: A norm of the menu with its knobs, as a `functools.partial`.
        noise: Makes the noise of a norm.
        seed: Of the initial weights.
        name: As timm calls the net.
        device: Where the parameters live.
        dtype: Of the parameters.

    Raises:
        Refusal: timm is not installed, does not know the net, or a norm of the net cannot be exchanged.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        num_classes: int,
        *,
        norm: NormPart,
        noise: Part,
        seed: int,
        name: str = "resnet18",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        timm = _timm()
        if not timm.is_model(name):
            raise Refusal("no-such-net", f'timm must know the net, got "{name}"; timm.list_models() has the names')
        on_meta = device is not None and torch.device(device).type == "meta"
        with torch.random.fork_rng(devices=[]), torch.device("meta" if on_meta else "cpu"):
            # Not torch.manual_seed, which would move the generators of all devices.
            torch.default_generator.manual_seed(stream_seed(seed, "init", "timm", name))
            net = timm.create_model(name, pretrained=False, num_classes=num_classes, in_chans=shape[0])
        self.net: Any = _noisy(_exchanged(net, _spec(norm)), noise).to(device=device, dtype=dtype)

    @property
    def classifier(self) -> nn.Module:
        """The last layer, which weight methods leave alone."""
        layer: nn.Module = self.net.get_classifier()
        return layer

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(N, num_classes)` of images `(N, C, H, W)`."""
        logits: Tensor = self.net(x)
        return logits


def _timm() -> Any:
    try:
        return importlib.import_module("timm")
    except ImportError as error:
        raise Refusal(
            "timm-not-installed",
            "nets of timm need the package timm, got none of this name; install it with pip install 'normcore[timm]'",
        ) from error


def _spec(norm: NormPart) -> Spec:
    # A norm's module is named after its kind.
    kind = norm.func.__module__.rpartition(".")[2]
    return asked_norm(kind, {knob: v for knob, v in norm.keywords.items() if knob not in {"device", "dtype"}})


def _exchanged(net: nn.Module, norm: Spec) -> nn.Module:
    known = norms_of(net)
    for path, found in known.items():
        if isinstance(found, str):
            raise _stays(path, found)
    if norm.model_dump()["kind"] == "none":
        tree = Tree(net)
        for path, found in known.items():
            assert isinstance(found, Known)
            nothing = NoNorm(found.num_features)
            tree.exchange(path, after(found, ChannelsLast(nothing) if found.channels_last else nothing))
        return tree.model
    converted = convert(net.eval(), norm)
    for row in converted.rows:
        layer = converted.model.get_submodule(row.path)
        if not any(isinstance(module, Norm) for module in layer.modules()):
            raise _stays(row.path, row.why)
    return converted.model.train()


def _stays(path: str, why: str) -> Refusal:
    return Refusal(
        "norm-not-exchanged",
        f"every norm of a net of timm must be exchanged for that of the job, got one that cannot be: {why}; take "
        f"another net or norm",
        layer=f"net.{path}",
    )


def _noisy(net: nn.Module, noise: Part) -> nn.Module:
    tree = Tree(net)
    for path, norm in [(path, module) for path, module in net.named_modules() if isinstance(module, Norm)]:
        tree.exchange(path, nn.Sequential(OrderedDict(norm=norm, noise=noise(norm.num_features))))
    return tree.model
