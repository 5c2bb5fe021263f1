"""Certify a layer: try every property it claims, and say what else was seen."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Collection
from dataclasses import replace
from typing import Literal, get_args

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from normcore.certificate import company, conventions, eps, gradients, invariances, precision, promises, tracing
from normcore.certificate.certificate import Certificate, Row, Verdict
from normcore.certificate.check import Check, NotTried, Observation
from normcore.certificate.torch_norms import torch_claims
from normcore.certificate.trial import Trial
from normcore.norms.claims import Claims
from normcore.refusal import Refusal

Group = Literal["invariances", "gradients", "conventions", "precision", "company", "tracing"]
GROUPS: tuple[Group, ...] = get_args(Group)

NUM_FEATURES = 8
PIXELS = ((4, 4), (16,), (), (2, 2, 4))
BATCH_SIZES = (4, 16, 32, 64, 128, 256)


def certify(
    layer: nn.Module,
    *,
    claims: Claims | None = None,
    like: str | None = None,
    shape: tuple[int, ...] | None = None,
    groups: Collection[Group] | None = None,
    cells: Collection[tracing.Cell] = tracing.CELLS,
    backend: str = "aot_eager",
    onnx: bool = False,
) -> Certificate:
    """Try a normalization layer, ours or yours: `(N, C, *)` to the same shape.

    The layer itself is left alone: copies of it are tried, on its device, its parameters `weight` and `bias` at one and
    zero, and the global random numbers stay where they are. A claim that is refuted fails. What is not claimed is shown
    as it was seen, and fails nothing; but shape, dtype, finite numbers, the same bits twice, an unmoved state in
    evaluation and a gradient that is the derivative of the output are owed by every layer.

    Args:
        layer: The layer, in any mode.
        claims: What it claims. When not given: what it carries as `claims` itself, as our norms do, or what torch
            promises of its own; otherwise nothing.
        like: A norm of the menu, by its kind, whose claims it makes.
        shape: Of the inputs; else the first of some small ones that the layer takes.
        groups: Which rows to try, all when not given; those that every layer owes always are.
        cells: Pairs of dtype and memory format to compile and export for.
        backend: Of `torch.compile`; `inductor` generates code, which takes longer.
        onnx: Export to ONNX as well.

    Raises:
        Refusal: Both claims and like are given, there is no such kind, the layer cannot be copied and called, or it
            takes none of the shapes.

    Example:
        >>> certificate = certify(nn.BatchNorm2d(4), groups=["conventions"])
        >>> certificate.passed
        True
        >>> certificate.row("running variance").observed
        'unbiased'
    """
    if claims is not None and like is not None:
        raise Refusal("two-claims", "a layer claims one thing, got both claims and like; leave one of them out")
    _refuse_what_cannot_be_tried(layer)
    claims = claims or (claims_of(like) if like is not None else own_claims(layer))
    device = next((tensor.device for tensor in (*layer.parameters(), *layer.buffers())), torch.device("cpu"))
    devices = [device] if device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices),
        torch.inference_mode(mode=False),
        torch.enable_grad(),
        torch.autocast(device.type, enabled=False),
        warnings.catch_warnings(action="ignore"),
    ):
        twin = copy.deepcopy(layer)
        trial = Trial(twin, claims, (), device, backend)
        trial = replace(trial, shape=_fitting_shape(trial, [] if shape is None else [tuple(shape)]))
        checks = _checks(GROUPS if groups is None else groups, tracing.checks(cells, onnx=onnx))
        return Certificate(repr(layer), trial.shape, _rows(trial, checks))


def own_claims(layer: nn.Module) -> Claims | None:
    """What a layer claims by itself: in its `claims`, or as a norm of torch."""
    carried = getattr(layer, "claims", None)
    return carried if isinstance(carried, Claims) else torch_claims(layer)


def claims_of(kind: str) -> Claims:
    """What a norm of the menu claims, with its knobs at their defaults.

    Raises:
        Refusal: There is no such kind.
    """
    from normcore.certificate.shelf import shelf_layer

    claims: Claims = shelf_layer(kind).claims
    return claims


def _checks(groups: Collection[Group], traced: tuple[Check, ...]) -> tuple[Check, ...]:
    if unknown := [group for group in groups if group not in GROUPS]:
        raise Refusal("no-such-rows", f"there are the rows {', '.join(GROUPS)}, got {unknown[0]!r}; take some of these")
    rows: dict[Group, tuple[Check, ...]] = {
        "invariances": invariances.CHECKS,
        "gradients": gradients.CHECKS,
        "conventions": (*conventions.CHECKS, *eps.CHECKS),
        "precision": precision.CHECKS,
        "company": company.CHECKS,
        "tracing": traced,
    }
    chosen = [check for group in GROUPS if group in groups for check in rows[group]]
    owed = [check for check in gradients.CHECKS if check.promised and check not in chosen]
    return (*promises.CHECKS, *owed, *chosen)


def _rows(trial: Trial, checks: tuple[Check, ...]) -> tuple[Row, ...]:
    rows: list[Row] = []
    broken = ""
    for check in checks:
        row = _skipped(check, trial, broken) if broken else _tried(check, trial)
        rows.append(row)
        if check.vital and row.verdict == "fail":
            broken = f"{check.property}: {row.observed}"
    return tuple(rows)


def _tried(check: Check, trial: Trial) -> Row:
    claimed = _claimed(check, trial)
    start = time.perf_counter()
    try:
        seen = check.observe(trial)
    except NotTried as reason:
        return replace(_skipped(check, trial, str(reason)), seconds=time.perf_counter() - start)
    except (Exception, SystemExit) as error:  # noqa: BLE001 (whatever a stranger's layer raises is what was seen)
        seen = Observation(f"raises {type(error).__name__}: {_first_line(error)}")
    seconds = time.perf_counter() - start
    verdict: Verdict = "not claimed" if not claimed else "pass" if seen.meets(claimed) else "fail"
    return Row(check.property, claimed, seen.observed, seen.error, seen.tolerance, verdict, "", seconds)


def _skipped(check: Check, trial: Trial, reason: str) -> Row:
    return Row(check.property, _claimed(check, trial), "", None, None, "skipped", reason, 0.0)


def _claimed(check: Check, trial: Trial) -> str:
    if trial.claims is not None:
        return check.claimed(trial.claims, trial.layer)
    return check.claimed(Claims(statistics="none"), trial.layer) if check.promised else ""


def _refuse_what_cannot_be_tried(layer: nn.Module) -> None:
    tensors = [*layer.parameters(), *layer.buffers()]
    if any(is_lazy(tensor) for tensor in tensors):
        found = "one whose sizes are unknown until it has seen a batch; call it once before"
    elif any(tensor.is_meta for tensor in tensors):
        found = "one on the meta device; take one with numbers"
    elif isinstance(layer, torch.jit.ScriptModule):
        found = "a scripted one; take the module that it was scripted from"
    else:
        return
    raise Refusal("not-to-be-tried", f"a layer to be certified is copied and called, got {found}")


def _fitting_shape(trial: Trial, asked: Collection[tuple[int, ...]]) -> tuple[int, ...]:
    """The first shape that the layer takes in training, of those that are asked for, else of some small ones."""
    errors: list[BaseException] = []
    shapes = asked or _small_shapes(trial.layer)
    for shape in shapes:
        tried = replace(trial, shape=shape)
        try:
            tried.copy(torch.float32)(tried.draw(dtype=torch.float32))
        except (Exception, SystemExit) as error:  # noqa: BLE001 (a stranger's layer says in its own way what it cannot take)
            errors.append(error)
        else:
            return shape
    words = ", ".join(map(str, list(shapes)[: len(PIXELS)]))
    larger, first = (", nor larger batches", "the first") if len(errors) > len(PIXELS) else ("", "it")
    raise Refusal(
        "no-shape-fits",
        f"a layer to be certified takes (N, C, *), and this one takes none of {words}{larger}; {first} "
        f"said {type(errors[0]).__name__}: {_first_line(errors[0])}; name a shape that it takes",
    ) from errors[0]


def _small_shapes(layer: nn.Module) -> list[tuple[int, ...]]:
    num_features, normalized = _num_features(layer)
    return [
        (batch_size if pixels else max(batch_size, 16), num_features, *pixels)
        for batch_size in BATCH_SIZES
        for pixels in ([normalized] if normalized is not None else PIXELS)
    ]


def _num_features(layer: nn.Module) -> tuple[int, tuple[int, ...] | None]:
    """Its channels, and its pixels where it is made for a single size of them, as torch's layer norm is."""
    normalized = getattr(layer, "normalized_shape", None)
    if isinstance(normalized, tuple | list) and normalized:
        return int(normalized[0]), tuple(normalized[1:])
    for name in ("num_features", "num_channels"):
        if isinstance(number := getattr(layer, name, None), int):
            return number, None
    return next((len(p) for p in (*layer.parameters(), *layer.buffers()) if p.dim() == 1), NUM_FEATURES), None


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "nothing")
