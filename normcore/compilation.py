"""A model compiled for training, where that can be done."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from normcore.noise.noise import Drawing
from normcore.probes.footprints import no_footprints

_NO_COMPILER = ("No working C++ compiler found", "Failed to find C compiler")
"""What torch's compiler says on a CPU and Triton says on a GPU."""
_NO_COMPILER_REMEDY = "; install g++ where the worker runs, which Docker's image leaves out, or leave compile out"


class Compiled:
    """What runs a model: `torch.compile` of it where that works and counts, else the model itself.

    Training passes run compiled as one graph. Evaluations run the model itself, and so does whatever has put a hook
    on a layer (to gather statistics, or to name the layer that diverged): a compiled graph would not call it. Names
    of parameters and buffers stay, since they are the model's.

    A model with layers that draw random numbers is not compiled: their seed is another number at every step, and the
    compiler would take each for a new program.
    """

    def __init__(self, model: nn.Module, backend: str = "inductor") -> None:
        self._model, self._modules, self._backend = model, list(model.modules()), backend
        self._compiled: Callable[..., Any] | None = None

    def attempt(self, loss: Callable[[], Tensor]) -> tuple[str, str]:
        """Compile, by a forward and a backward pass that leave no trace; a code and a sentence for a remark.

        Args:
            loss: Runs the model through `callable`.
        """
        drawing = [type(m).__name__ for m in self._modules if isinstance(m, Drawing) and m.draws]
        if drawing:
            return (
                "compile-fell-back",
                f"the model trains uncompiled: its layers {drawing[0]} draw other numbers each step",
            )
        self._compiled = torch.compile(self._model, backend=self._backend, fullgraph=True)
        try:
            with no_footprints(self._model):
                loss().backward()  # type: ignore[no-untyped-call]
        except Exception as error:  # noqa: BLE001 - whatever the compiler raises, the model itself still trains
            self._compiled = None
            # What follows is how to debug the compiler.
            why = " ".join(str(error).partition("\n\nSet TORCH")[0].split())
            remedy = _NO_COMPILER_REMEDY if any(words in why for words in _NO_COMPILER) else ""
            return "compile-fell-back", f"the model trains uncompiled: {type(error).__name__}: {why[:300]}{remedy}"
        return "compiled", f"training passes run as one graph compiled by {self._backend} of torch {torch.__version__}"

    def callable(self) -> Callable[..., Any]:
        """What to call now."""
        if self._compiled is None or not self._model.training or any(map(_hooked, self._modules)):
            return self._model
        return self._compiled


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)  # noqa: SLF001
