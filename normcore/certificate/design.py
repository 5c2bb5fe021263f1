"""Inputs of plus and minus one in which every set that a norm may normalize has mean zero and variance one."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from normcore.certificate.check import NotTried
from normcore.certificate.trial import Trial


def design(trial: Trial) -> Tensor:
    """Signs that are balanced over the pixels of every channel of every sample, and over the batch.

    A channel is a Walsh function of pixel and sample, so that channels are uncorrelated as far as there are functions
    enough. Where a layer looks at the channels of a single pixel only, every second channel is the negative of the one
    before it, so that they are balanced too.

    Raises:
        NotTried: Samples or pixels are no power of two, or channels must be paired and are odd in number.
    """
    num_samples, num_channels, num_pixels = trial.shape[0], trial.shape[1], math.prod(trial.shape[2:])
    if num_samples & (num_samples - 1) or num_pixels & (num_pixels - 1):
        raise NotTried(f"the inputs that show it need powers of two of samples and of pixels, got {trial.shape}")
    paired = trial.reach.channels and not trial.reach.pixels and not trial.reach.samples
    if paired and num_channels % 2:
        raise NotTried(f"the inputs that show it need an even number of channels, got {trial.shape}")
    functions = num_channels // 2 if paired else num_channels
    signs = torch.stack([_walsh(_code(c, num_samples, num_pixels), num_samples * num_pixels) for c in range(functions)])
    if paired:
        signs = torch.stack([signs, -signs], 1).flatten(0, 1)
    x = signs.view(num_channels, num_samples, *trial.shape[2:]).transpose(0, 1)
    return x.contiguous().to(trial.device)


def _code(channel: int, num_samples: int, num_pixels: int) -> int:
    """Which bits of the position make the sign: the highest of the pixel always, the rest tells channels apart."""
    if num_pixels == 1:
        num_samples, num_pixels = 1, num_samples
    top = num_pixels // 2
    low = channel % top if top > 1 else 0
    high = channel // max(1, top) % num_samples
    return low | top | high * num_pixels


def _walsh(code: int, length: int) -> Tensor:
    position = torch.arange(length)
    bits = sum(((position & code) >> bit) & 1 for bit in range(length.bit_length()))
    return (1 - 2 * (torch.as_tensor(bits) % 2)).double()
