"""What an exception in a training means: whose fault it is, and what the person who ordered it should read."""

from __future__ import annotations

from collections.abc import Callable

import torch
from pydantic import ValidationError

from normcore.companions import RankLost
from normcore.refusal import Refusal
from worker.checkpoint import CorruptCheckpoint
from worker.exits import Exit
from worker.wire import Failed

MAX_LINES = 20
MAX_CHARACTERS = 2000

_ALLOCATION = "DefaultCPUAllocator: can't allocate memory"
_DRIVER = ("CUDA error", "CUDNN_STATUS", "cuDNN error", "CUBLAS_STATUS", "NVML_")


def failure_of(error: Exception, remedy: Callable[[], str] | None = None) -> tuple[Exit, Failed]:
    """The exit code of a training that raised, and its message: the last lines of the error, without the traceback.

    Args:
        error: What was raised.
        remedy: Says what would help where memory ran out, see `normcore.shortage`.

    Example:
        >>> failure_of(ZeroDivisionError("division by zero"))
        (<Exit.EXCEPTION: 70>, Failed(code='exception', detail='ZeroDivisionError: division by zero'))
    """
    text = str(error)
    if isinstance(error, Refusal):
        return Exit.SPEC, Failed(error.code, text)
    if isinstance(error, ValidationError):
        return Exit.SPEC, Failed("spec", f"the worker cannot read the spec: {_tail(text)}; update the worker")
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or _ALLOCATION in text:
        got = (_tail(text) or "no more of it").partition("\n")[0]
        advice = "lower batch_size or width" if remedy is None else _said(remedy)
        detail = f"the training must fit into memory, got {got}; {advice}"
        return Exit.OUT_OF_MEMORY, Failed("out-of-memory", detail)
    if isinstance(error, RankLost):
        return Exit.DEVICE, Failed("rank-lost", _tail(text))
    if isinstance(error, RuntimeError) and any(sign in text for sign in _DRIVER):
        return Exit.DEVICE, Failed("device-error", _tail(text))
    if isinstance(error, CorruptCheckpoint):
        return Exit.IO, Failed("corrupt-checkpoint", text)
    if isinstance(error, OSError):
        return Exit.IO, Failed("io-error", _tail(f"{type(error).__name__}: {text}"))
    return Exit.EXCEPTION, Failed("exception", _tail(f"{type(error).__name__}: {text}"))


def _said(remedy: Callable[[], str]) -> str:
    """The remedy; where memory or the spec allows none to be worked out, a general one."""
    try:
        return remedy()
    except Exception:  # noqa: BLE001 - the answer to one failure must not be another
        return "lower batch_size or width"


def _tail(text: str) -> str:
    return "\n".join(text.strip().splitlines()[-MAX_LINES:])[-MAX_CHARACTERS:]
