"""What the shelf costs: every norm and weight method on the menu, beside its rivals and beside a copy of its input.

Run `.venv/bin/python benchmarks/norms.py` for all of it, some ten minutes, or a part of it with `--kinds`, `--shapes`
and `--rounds`. Each cell is a kind, a shape, a dtype and a layout: NCHW, or NHWC with the channels last in memory. Two
things are measured in training mode: a forward pass that could be differentiated, and one with its backward pass, down
to the gradients of the input and the parameters. Parameters are float32, as in a bfloat16 training.

The arms of a cell (ours, its rivals, a copy) take turns in one process, on one thread, in the environment of a worker's
trainer; a turn repeats an arm until some milliseconds have passed, and who comes first changes. The clock is the
process's CPU time, so that other programs on the machine count less. A ratio below 1 says that ours is the faster one:
`medians` is that of the medians, `turns` the median of the ratios turn by turn. A rival that cannot do a cell is named
with its reason. Outputs are compared in float32: a rival that computes something else is told.

The copy is `clone()` of the input, and with the backward pass of the gradient as well: what memory alone costs. A
weight method stands on a 3x3 convolution in float32 and NHWC, beside the plain convolution in the place of the copy.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from machine import become_a_trainer, describe
from rivals import norm_rivals, weight_rivals
from torch import Tensor, nn

from normcore.menu.spec import Spec
from normcore.refusal import Refusal
from normcore.spec import MENU, kind_of

SHAPES = ((128, 64, 32, 32), (8, 64, 56, 56), (128, 256, 8, 8), (2, 256, 28, 28))
TOKENS = (32, 512, 128)
OF_TOKENS = {"batch", "group", "layer", "instance", "layer_channels", "rms", "dyt", "power"}
"""Norms that meet sequences; the others are measured on images only."""
NOT_OF_A_LAYER = {"none", "fixup"}
"""There is nothing to measure about none, and fixup is a way to start a whole model."""
WEIGHT_SHAPES = {(8, 64, 56, 56), (2, 256, 28, 28)}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
LAYOUTS = ("NCHW", "NHWC")
PASSES = ("forward", "and back")
TURN_S = 0.003
CAN_DIFFER = 1e-3
"""Largest difference from a rival, in shares of the largest output, that rounding and places of eps explain."""

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Arm:
    """One of those that take turns; where it cannot, why."""

    name: str
    module: nn.Module | None
    note: str = ""


@dataclass(slots=True)
class Cell:
    """What was measured in one place of the table."""

    family: str
    kind: str
    shape: Shape
    dtype: str
    layout: str
    which: str
    ms: dict[str, list[float]] = field(default_factory=dict)
    """CPU milliseconds a call, by arm and turn; ours first, the copy or plain convolution last."""
    notes: dict[str, str] = field(default_factory=dict)


def main() -> None:
    """Measure, print the table, and keep the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", help="kinds to measure; all when not given")
    parser.add_argument("--shapes", nargs="+", type=shape_of, help="shapes to measure, as 128x64x32x32; all likewise")
    parser.add_argument("--rounds", type=int, default=9, help="turns of each arm in each cell")
    parser.add_argument("--json", type=Path, default=Path("var/benchmarks/norms.json"), help="where numbers are kept")
    arguments = parser.parse_args()
    become_a_trainer()
    print(describe())
    print(f"{'kind':16} {'shape':>14} {'dtype':8} {'layout':6} {'pass':8} {'ours, CPU ms (quartiles)':>28} ", end="")
    print(f"{'/ copy':>7}  rivals")
    cells = []
    for family, spec, shape, dtype, layout in places(arguments.kinds, arguments.shapes):
        for cell in measure(family, spec, shape, dtype, layout, arguments.rounds):
            cells.append(cell)
            print(line(cell), flush=True)
    summarize(cells)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps({"machine": describe(), "cells": [as_json(cell) for cell in cells]}, indent=1))
    print(f"{len(cells)} cells; numbers in {arguments.json}")


def shape_of(text: str) -> Shape:
    """`128x64x32x32` as a shape."""
    return tuple(int(size) for size in text.split("x"))


def places(
    kinds: Sequence[str] | None, shapes: Sequence[Shape] | None
) -> Iterator[tuple[str, type[Spec], Shape, str, str]]:
    """Every place of the table that was asked for: family, spec, shape, dtype and layout."""
    for family in ("norm", "weight"):
        for spec in MENU[family]:
            kind = kind_of(spec)
            if kind in NOT_OF_A_LAYER or (kinds and kind not in kinds):
                continue
            for shape in shapes or (*SHAPES, TOKENS):
                if family == "weight":
                    if shape in WEIGHT_SHAPES or (shapes and len(shape) == 4):
                        yield family, spec, shape, "float32", "NHWC"
                elif len(shape) == 4 or kind in OF_TOKENS:
                    yield from ((family, spec, shape, dtype, layout) for dtype in DTYPES for layout in LAYOUTS)


def measure(family: str, spec: type[Spec], shape: Shape, dtype: str, layout: str, rounds: int) -> Iterator[Cell]:
    """The cells of one place: one for each pass."""
    torch.manual_seed(0)
    x, grad = (laid_out(torch.randn(shape).to(DTYPES[dtype]), layout).requires_grad_() for _ in range(2))
    arms = list(arms_of(family, spec, shape, x))
    for which in PASSES:
        cell = Cell(family, kind_of(spec), shape, dtype, layout, which)
        cell.notes = {arm.name: arm.note for arm in arms if arm.note}
        calls = {arm.name: call(arm.module, x, grad, which) for arm in arms if arm.module is not None}
        if family == "norm":
            calls["copy"] = copies(x, grad, which)
        cell.ms = dict(zip(calls, take_turns(list(calls.values()), rounds), strict=True))
        yield cell


def arms_of(family: str, spec: type[Spec], shape: Shape, x: Tensor) -> Iterator[Arm]:
    """Ours and its rivals, each tried once, forward and back."""
    ours = attempt("ours", lambda: our_norm(spec, shape) if family == "norm" else OurConv(spec, shape[1]), x)
    yield ours
    kind = kind_of(spec)
    for rival in norm_rivals(kind, len(shape)) if family == "norm" else weight_rivals(kind):
        arm = attempt(rival.name, lambda rival=rival: rival.make(shape[1], len(shape)), x)
        yield Arm(arm.name, arm.module, arm.note or difference(ours, arm, x, family))
    if family == "weight":
        yield attempt("plain conv", lambda: nn.Conv2d(shape[1], shape[1], 3, padding=1), x)


def our_norm(spec: type[Spec], shape: Shape) -> nn.Module:
    """The norm of the menu, with the menu's defaults wherever they fit the shape."""
    knobs: dict[str, Any] = {"ghost": {"virtual_batch_size": shape[0] // 2}}.get(kind_of(spec), {})
    made = spec(**knobs)
    module: nn.Module = made.part()(shape[1], **made.knobs())
    return module


class OurConv(nn.Module):
    """A model of one map, a 3x3 convolution, with a weight method of the menu."""

    def __init__(self, spec: type[Spec], channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        spec().part()(self, **spec().knobs())

    def forward(self, x: Tensor) -> Tensor:
        """The convolution alone."""
        y: Tensor = self.conv(x)
        return y


def attempt(name: str, make: Callable[[], nn.Module], x: Tensor) -> Arm:
    """The arm, with its parameters in float32, or else in the input's dtype; or why it cannot take part."""
    reasons = []
    for dtype, note in ((torch.float32, ""), (x.dtype, f"parameters in {str(x.dtype).removeprefix('torch.')}")):
        try:
            module = make().to(dtype, memory_format=torch.channels_last) if x.dim() == 4 else make().to(dtype)
            call(module, x, x.detach(), PASSES[1])()
        except (RuntimeError, ValueError, NotImplementedError, AttributeError, KeyError, Refusal) as error:
            reasons.append(str(error).splitlines()[0][:100])
        else:
            return Arm(name, module, note if dtype != torch.float32 else "")
    return Arm(name, None, f"cannot: {reasons[0]}")


def difference(ours: Arm, rival: Arm, x: Tensor, family: str) -> str:
    """What to say of a rival whose output is another; a convolution's weights are drawn anew, so only norms compare."""
    if family == "weight" or ours.module is None or rival.module is None or x.dtype != torch.float32:
        return ""
    with torch.no_grad():
        a, b = ours.module(x), rival.module(x)
        share = ((a - b).abs().max() / a.abs().max()).item()
    return f"computes something else: differs by {share:.1%}" if share > CAN_DIFFER else ""


def call(module: nn.Module, x: Tensor, grad: Tensor, which: str) -> Callable[[], object]:
    """A pass of a module as something to be repeated."""
    if which == PASSES[0]:
        return lambda: module(x)
    wanted = [x, *(parameter for parameter in module.parameters() if parameter.requires_grad)]

    def both() -> object:
        y = module(x)
        return torch.autograd.grad(y, wanted, grad.to(y.dtype), allow_unused=True)

    return both


def copies(x: Tensor, grad: Tensor, which: str) -> Callable[[], object]:
    """What memory alone costs in a pass."""
    x, grad = x.detach(), grad.detach()
    return x.clone if which == PASSES[0] else lambda: (x.clone(), grad.clone())


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The same values, with the channels last in memory where that is asked for."""
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if layout == "NHWC" else x


def take_turns(calls: Sequence[Callable[[], object]], rounds: int) -> list[list[float]]:
    """CPU milliseconds a call, of each call in each round; the first round warms up and says how often to repeat."""
    repeats = []
    for function in calls:
        function()
        repeats.append(max(1, math.ceil(TURN_S / max(timed(function, 1) / 1000, 1e-7))))
    spent: list[list[float]] = [[] for _ in calls]
    for turn in range(rounds):
        # Who comes first changes, since each arm leaves its successor a heap of another shape.
        for index in range(turn, turn + len(calls)):
            arm = index % len(calls)
            spent[arm].append(timed(calls[arm], repeats[arm]))
    return spent


def timed(function: Callable[[], object], repeats: int) -> float:
    """CPU milliseconds a call."""
    began = time.process_time()
    for _ in range(repeats):
        function()
    return 1000 * (time.process_time() - began) / repeats


def line(cell: Cell) -> str:
    """A row of the table."""
    size = "x".join(map(str, cell.shape))
    row = f"{cell.kind:16} {size:>14} {cell.dtype:8} {cell.layout:6} {cell.which:8} "
    if "ours" not in cell.ms:
        return row + cell.notes["ours"]
    row += f"{spread(cell.ms['ours']):>28}  {ratio(cell, floor(cell)):6.2f}  "
    said = []
    for name in rivals_in(cell):
        note = f" ({cell.notes[name]})" if name in cell.notes else ""
        if name in cell.ms:
            note = (
                f" {spread(cell.ms[name])}, ratio {ratio(cell, name):.2f} medians {turns(cell, name):.2f} turns" + note
            )
        said.append(name + note)
    lacking = [library for library in ("torch", "timm") if not any(name.startswith(library) for name in said)]
    return row + "; ".join([*said, *([f"{' and '.join(lacking)}: none"] if lacking else [])])


def rivals_in(cell: Cell) -> list[str]:
    """The names of the rivals, also of those that cannot do the cell."""
    return [name for name in dict.fromkeys([*cell.ms, *cell.notes]) if name not in {"ours", floor(cell)}]


def floor(cell: Cell) -> str:
    """The arm that does least."""
    return "copy" if cell.family == "norm" else "plain conv"


def spread(values: list[float]) -> str:
    """Median and quartiles."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{median:.3f} ({low:.3f} to {high:.3f})"


def ratio(cell: Cell, name: str) -> float:
    """Ours over another arm, by the medians."""
    return statistics.median(cell.ms["ours"]) / statistics.median(cell.ms[name])


def turns(cell: Cell, name: str) -> float:
    """The median over the turns of ours over another arm."""
    return statistics.median(a / b for a, b in zip(cell.ms["ours"], cell.ms[name], strict=True))


def summarize(cells: Sequence[Cell]) -> None:
    """One row for each kind and rival: the ratios over all its cells."""
    print(f"\n{'kind':16} {'against':32} {'cells':>5} {'geometric mean':>14} {'worst':>6}  where")
    seen: dict[tuple[str, str], list[tuple[float, Cell]]] = {}
    for cell in cells:
        for name in cell.ms if "ours" in cell.ms else ():
            if name != "ours":
                seen.setdefault((cell.kind, name), []).append((ratio(cell, name), cell))
    for (kind, name), ratios in seen.items():
        mean = math.exp(statistics.fmean(math.log(value) for value, _ in ratios))
        worst, cell = max(ratios, key=lambda pair: pair[0])
        where = f"{'x'.join(map(str, cell.shape))} {cell.dtype} {cell.layout} {cell.which}"
        print(f"{kind:16} {name:32} {len(ratios):5} {mean:14.2f} {worst:6.2f}  {where}")


def as_json(cell: Cell) -> dict[str, Any]:
    """A cell's numbers and what can be worked out from them."""
    place = {name: getattr(cell, name) for name in ("family", "kind", "shape", "dtype", "layout")} | {
        "pass": cell.which
    }
    others = [name for name in cell.ms if name != "ours" and "ours" in cell.ms]
    ratios = {name: {"medians": ratio(cell, name), "turns": turns(cell, name)} for name in others}
    return place | {"ms": cell.ms, "notes": cell.notes, "ratios": ratios}


if __name__ == "__main__":
    main()
