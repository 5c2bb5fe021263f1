"""Models written as ONNX, and run as such before anyone relies on them."""

from __future__ import annotations

import copy
import importlib.util
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from normcore.refusal import Refusal
from normcore.surgery.compare import difference, run

PACKAGES = ("onnx", "onnxruntime", "onnxscript")
NO_ONNX_FUNCTION = re.compile(r"No ONNX function found for <OpOverload\(op='([\w.]+)'")


@dataclass(frozen=True, slots=True)
class OnnxExport:
    """A model that onnxruntime computes as torch does."""

    path: Path
    operators: tuple[str, ...]
    """Of ONNX, that it is made of."""
    error: float
    """Largest difference in the outputs between onnxruntime and torch, over the largest output."""


def export_onnx(
    model: nn.Module,
    example: Tensor | tuple[Tensor, ...],
    path: Path | str,
    *,
    tolerance: float = 1e-5,
    dynamic_batch: bool = True,
) -> OnnxExport:
    """Writes what a model computes in evaluation as an ONNX file, runs the file with onnxruntime, and compares.

    The comparison is on the example, and with `dynamic_batch` on a batch twice as large as well. A file that computes
    something else is not left lying about. Every norm of the shelf has an ONNX form in evaluation: those that decompose
    a covariance do so in training only, and are a matrix in evaluation. Needs `normcore[onnx]`.

    Args:
        model: In any mode; not touched.
        example: What it is called with: a batch, or several arguments.
        path: Of the file.
        tolerance: The largest difference in the outputs, over the largest output, that is let pass.
        dynamic_batch: Whether the file takes batches of any size, dimension 0 of every argument, or the example's only.

    Raises:
        Refusal: The packages are not installed (code `onnx-not-installed`); the forward cannot be exported, or an
            operator has no ONNX form (`not-exportable`); or onnxruntime computes something else (`onnx-differs`).

    Example:
        >>> import tempfile
        >>> from normcore.norms.group import GroupNorm
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), GroupNorm(4, num_groups=2))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     done = export_onnx(net, torch.randn(2, 3, 8, 8), f"{folder}/net.onnx")
        >>> "Conv" in done.operators, done.error < 1e-5
        (True, True)
    """
    _check_installed()
    path = Path(path)
    example = (example,) if isinstance(example, Tensor) else example
    model = copy.deepcopy(model).eval()
    batches = [example]
    if dynamic_batch:
        # With one sample torch.export would take the one for a constant.
        example = tuple(torch.cat([x, x]) if x.shape[0] == 1 else x for x in example)
        batches = [example, tuple(torch.cat([x, x]) for x in example)]
    _write(model, example, path, dynamic_batch=dynamic_batch)
    error = max(difference(run(model, batch), _run_onnx(path, batch)) for batch in batches)
    if not error <= tolerance:
        path.unlink()
        raise Refusal(
            "onnx-differs",
            f"onnxruntime must compute what torch does up to a relative {tolerance:.1e}, got {error:.1e}; raise the "
            f"tolerance if that will do, or export a model in float32 or float64",
        )
    return OnnxExport(path, _operators(path), error)


def _check_installed() -> None:
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise Refusal(
            "onnx-not-installed",
            f"ONNX export needs the packages {', '.join(PACKAGES)}, got none of the name {', '.join(missing)}; "
            f"install them with pip install 'normcore[onnx]'",
        )


def _write(model: nn.Module, example: tuple[Tensor, ...], path: Path, *, dynamic_batch: bool) -> None:
    shapes: Any = tuple({0: torch.export.Dim.DYNAMIC} for _ in example) if dynamic_batch else None
    with _quiet(), torch.no_grad():
        try:
            program = torch.onnx.export(model, example, dynamo=True, dynamic_shapes=shapes, verbose=False)
        except Exception as error:
            raise Refusal("not-exportable", _why(error)) from error
        assert program is not None
        program.save(str(path))


def _why(error: BaseException) -> str:
    """What an exporter's chain of errors comes down to."""
    chain = [error]
    while (cause := chain[-1].__cause__) is not None:
        chain.append(cause)
    operators = {name for link in chain for name in NO_ONNX_FUNCTION.findall(str(link))}
    if operators:
        return (
            f"every operator must have an ONNX form, got {', '.join(sorted(operators))}, which has none; "
            f"take another layer for it, or use torch.export"
        )
    reason = next((line.strip() for line in str(chain[-1]).splitlines() if line.strip()), type(chain[-1]).__name__)
    return (
        f"the forward must be exportable by torch.export, got {type(chain[-1]).__name__} ({reason}); write it without "
        f"branches on values and with tensors for arguments, or give an example of another batch size"
    )


def _run_onnx(path: Path, batch: tuple[Tensor, ...]) -> list[Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    fed = dict(zip(names, (x.detach().cpu().numpy() for x in batch), strict=True))
    return [torch.from_numpy(output) for output in session.run(None, fed)]


def _operators(path: Path) -> tuple[str, ...]:
    import onnx

    return tuple(sorted({node.op_type for node in onnx.load(str(path), load_external_data=False).graph.node}))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's own words about itself: that torchvision is not installed, and what it will deprecate."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        logger.setLevel(level)
