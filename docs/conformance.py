"""Which conventions each norm of the shelf follows: writes `docs/conformance.md`.

Run `.venv/bin/python docs/conformance.py`. Conventions are measured from outputs by `normcore.certify`, of our layers
and, where torch has the norm, of torch's. What other references do is said in `REFERENCES`, by hand, from their papers
and their code.
"""

from __future__ import annotations

from pathlib import Path

from torch import nn

from normcore.certificate.certificate import Certificate
from normcore.certificate.certify import certify
from normcore.certificate.shelf import shelf_layer

PAGE = Path(__file__).with_suffix(".md")

CHANNELS = {"group": 64, "evonorm_s0": 64}
"""Of norms whose groups would otherwise be single channels."""

TORCH: dict[str, nn.Module] = {
    "batch": nn.BatchNorm2d(8),
    "group": nn.GroupNorm(32, 64),
    "layer": nn.LayerNorm((8, 4, 4)),
    "instance": nn.InstanceNorm2d(8),
    "layer_channels": nn.LayerNorm(8),
    "rms": nn.RMSNorm(8),
    "local_response": nn.LocalResponseNorm(5),
    "sync": nn.BatchNorm2d(8),
}
"""Torch's layer of the kind, with torch's defaults."""

REFERENCES: dict[str, tuple[str, str]] = {
    "none": ("the identity", "nothing"),
    "batch": (
        "`torch.nn.BatchNorm2d`; Ioffe & Szegedy 2015",
        (
            "nothing by default; `estimator` takes the paper's average of unbiased variances, or the population's "
            "variance, where a moving average forgets. Flax holds a biased running variance"
        ),
    ),
    "group": ("`torch.nn.GroupNorm`; Wu & He 2018", "groups of one value are refused: torch gives zeros for them"),
    "layer": (
        "`torch.nn.GroupNorm` with one group; Ba et al. 2016",
        "gamma and beta per channel, as convolutional nets have them; torch's over `(C, H, W)` has one per value",
    ),
    "instance": (
        "`torch.nn.InstanceNorm2d`; Ulyanov et al. 2016",
        "gamma and beta by default, channels_last is kept, maps of one pixel are refused; no running statistics",
    ),
    "layer_channels": ("timm `LayerNorm2d`", "nothing; torch's layer of the same arithmetic has an eps of 1e-5"),
    "rms": (
        "Zhang & Sennrich 2019; `torch.nn.RMSNorm`",
        "one eps for every dtype, as language models have it; torch's default is the epsilon of the input's dtype",
    ),
    "dyt": ("Zhu et al. 2025, the authors' code", "nothing"),
    "switchable": (
        "Luo et al. 2019, the authors' code",
        (
            "variances of instances are biased, as in the paper's equations, and the running variance starts at 1; the "
            "authors' code divides them by m - 1 and starts at 0"
        ),
    ),
    "ghost": (
        "Hoffer et al. 2017",
        "running statistics are those of the whole batch, moved once a step; the paper's move once per virtual batch",
    ),
    "sync": (
        "`torch.nn.SyncBatchNorm`",
        (
            "shards of any sizes and CPUs too; `virtual_ranks` splits the batch of one process. Measured against torch's "
            "batch norm: torch's own needs a process group"
        ),
    ),
    "batch_renorm": (
        "Ioffe 2017; ludvb/batchrenorm",
        (
            "eps is added to the deviation, as in the code; the paper adds it to the variance. Running statistics hold the "
            "deviation. The schedule is a fiftieth of the paper's"
        ),
    ),
    "lp": ("Santurkar et al. 2018, section 3.3", "nothing; the paper names no eps, and no running statistics"),
    "filter_response": (
        "Singh & Krishnan 2020",
        "the learned eps is 1e-6 + abs(eps_l), per channel, as in the paper; timm's has none",
    ),
    "local_response": (
        "Krizhevsky et al. 2012",
        "alpha weighs the sum of squares, as in the paper; torch divides it by the size first: `convention` is torch",
    ),
    "divisive": (
        "Ren et al. 2017, the authors' code",
        (
            "means at borders are over the pixels that are there; the authors' code divides one of its two windows by the "
            "other's size there. Windows overlap, so their variances are none of the two. The penalty on v is the loss's"
        ),
    ),
    "evonorm_s0": ("Liu et al. 2020; timm", "nothing; another copy in use takes the unbiased variance"),
    "evonorm_b0": ("Liu et al. 2020; timm", "nothing"),
    "whitening": (
        "Huang et al. 2018, the authors' code",
        (
            "groups have matrices of their own, where the authors' code pools all groups into one; gamma starts at 1, "
            "there uniform from 0 to 1"
        ),
    ),
    "iterative": (
        "Huang et al. 2019, the authors' code",
        "the same iterates by a coupled iteration, which stays stable at many steps and ill-conditioned inputs",
    ),
    "power": (
        "Shen et al. 2020, the authors' code",
        "the backward pass divides by what the forward pass divided by; the authors' code by the batch's own",
    ),
}
"""What the norm is held to, and what differs from it and why."""

COLUMNS = (
    "moved in training by other",
    "variance",
    "eps",
    "value of eps",
    "weight of the newest batch",
    "running variance",
)


def main() -> None:
    """Measure, and write the page."""
    PAGE.write_text(page())


def page() -> str:
    """The page: a table of our norms, and one of torch's beside which they stand."""
    lines = [
        "# Conventions of the shelf",
        "",
        (
            "Written by `docs/conformance.py`. What stands in the columns from *over* to *starts at* was measured by "
            "`normcore.certify` from the outputs of each norm with its default knobs: what statistics run over (a value is "
            "moved by which others), what a training pass divides by, where eps stands and how large it is, how much of the "
            "running statistics is the newest batch, and whether they hold the biased variance or the unbiased one. A cell "
            "is empty where there is no such thing, or no single one."
        ),
        "",
        "| norm | over | variance | eps | newest batch | running variance | starts at | held to | what differs |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for kind, said in REFERENCES.items():
        layer = shelf_layer(kind, CHANNELS.get(kind))
        lines.append(row(f"`{kind}`", measured(layer), starts(layer), *said))
    lines += [
        "",
        "Torch's own, measured the same way:",
        "",
        "| norm | torch | over | variance | eps | newest batch | running variance |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [row(f"`{kind}`", f"`{type(layer).__name__}`", measured(layer)) for kind, layer in TORCH.items()]
    return "\n".join(lines) + "\n"


def measured(layer: nn.Module) -> str:
    """The conventions of a layer, as cells of a table."""
    certificate = certify(layer, groups=["conventions"])
    over, variance, place, value, newest, running = (seen(certificate, name) for name in COLUMNS)
    return " | ".join([over, variance, f"{place}, {value}" if value else place, newest, running])


def seen(certificate: Certificate, name: str) -> str:
    """What was observed of a property; nothing where it could not be."""
    observed = certificate.row(name).observed
    return "" if observed == "neither" else observed


def starts(layer: nn.Module) -> str:
    """Where the learned parameters of a layer start; each of them at one number."""
    return ", ".join(f"{name} {p.flatten()[0].item():g}" for name, p in layer.named_parameters()) or "nothing learned"


def row(*cells: str) -> str:
    """A line of a table."""
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
