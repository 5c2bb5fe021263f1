"""A model with its data and its optimizer: what the training loop moves."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from normcore.build import build_model
from normcore.data.batch import Batch
from normcore.data.dataset import load
from normcore.data.folders import DataFolders
from normcore.menu.optimizers import OptimizerSpec
from normcore.noise.noise import Drawing, start_step
from normcore.norms.norm import Norm
from normcore.objective import loss_of
from normcore.optimizers.adaptive_clipping import AdaptiveClipping
from normcore.ranks import ALONE, Ranks
from normcore.spec import JobSpec
from normcore.weights.spectral import spectral_norms
from normcore.weights.weight_norm import initialize_from_data, wants_data


class Learner:
    """Computes steps of a job and makes their updates.

    Args:
        spec: The job.
        device: Where it computes.
        folders: Where datasets lie; below the working directory when not given.
        ranks: Who else computes the same steps.

    Raises:
        Refusal: The model cannot be built, the batch is larger than the data, or the dataset is not to be had.

    Attributes:
        model: In training mode.
        data: Resident on the device.
        optimizer: Fused.
        classifies: Whether labels are classes, so that there is an accuracy.
    """

    def __init__(
        self, spec: JobSpec, device: torch.device, folders: DataFolders | None = None, ranks: Ranks = ALONE
    ) -> None:
        self.ranks = ranks
        self.data = load(spec, device=device, folders=folders)
        # Convolutions, with norms of every kind, are as fast or faster with the channels in the last place of memory.
        self.model = build_model(spec, device=device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer: torch.optim.Optimizer = spec.optimizer.part()(spec.optimizer, self.model)
        self._seed, self._parameters = ranks.seed(spec.seed), list(self.model.parameters())
        self._clipping = _clipping(spec.optimizer, self.model)
        self._spectral_norms = spectral_norms(self.model)
        norms = [module for module in self.model.modules() if isinstance(module, Norm) and module.remembers]
        self._memories = [buffer for norm in norms for buffer in norm.buffers()]
        self._draws = any(isinstance(module, Drawing) and module.draws for module in self.model.modules())
        self._loss, self.classifies = loss_of(spec.data), spec.data.task == "classification"
        self._bfloat16 = spec.precision == "bfloat16"
        self._precision = torch.autocast(device.type, torch.bfloat16) if self._bfloat16 else nullcontext()
        # Fused optimizers make no update while `found_inf` is 1.
        self._diverged, self._one = (f((), dtype=torch.float32, device=device) for f in (torch.zeros, torch.ones))
        self.optimizer.found_inf = self._diverged

    def begin(self) -> None:
        """Let the first batch choose those initial values that are to be chosen by data.

        Only at the start of a training, not where one is resumed.
        """
        if wants_data(self.model):
            # The whole batch on every rank: it is to choose what it would choose on a single device.
            initialize_from_data(self.model, lambda: self._forward(1, self.data.batch(0)))
        self.ranks.follow(self.model.state_dict().values())

    def infer(self, batch: Batch) -> Tensor:
        """The model's outputs for a batch, `(N, num_outputs)` in float32 or better; labels do not count."""
        with self._precision:
            outputs: Tensor = (
                self.model(batch.inputs) if batch.mask is None else self.model(batch.inputs, mask=batch.mask)
            )
        return outputs.float() if self._bfloat16 else outputs

    def forward(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, outputs and labels of the batch of update number `step`, the first being 1, with its noise.

        The same step gives the same loss as long as the parameters are the same.
        """
        return self._forward(step, self.batch(step))

    def batch(self, step: int) -> Batch:
        """The batch of update number `step`, or this rank's part of it."""
        return self.ranks.rows(self.data.batch(step - 1))

    def replay(self, step: int) -> Callable[[], Tensor]:
        """What computes the loss of `forward` as often as it is called, from a batch that is fetched once.

        Norms that remember earlier passes are put back to where they stand now before each computation; so ask before
        `forward` moves them, to see what it saw.
        """
        batch = self.batch(step)
        kept = [buffer.clone() for buffer in self._memories]

        def again() -> Tensor:
            with torch.no_grad():
                for buffer, value in zip(self._memories, kept, strict=True):
                    buffer.copy_(value)
            return self._forward(step, batch)[0]

        return again

    def _forward(self, step: int, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        if self._draws:
            start_step(self.model, self._seed, step - 1)
        outputs = self.infer(batch)
        loss = self.ranks.joined(self._loss(outputs, batch.labels), self.model, mean=self.classifies)
        return loss, outputs, batch.labels

    def backward(self, loss: Tensor) -> None:
        """Leave the gradients of a loss in the parameters' `.grad`."""
        # Here and not after the update: the new gradients then take the memory of the old ones, still in the caches.
        for parameter in self._parameters:
            parameter.grad = None
        loss.backward()  # type: ignore[no-untyped-call]

    def state(self) -> dict[str, Tensor]:
        """What a training changes besides model, optimizer and torch's generators, by name: the tensors themselves.

        Whatever comes to stand here is in every snapshot, and is written back into where it is resumed.
        """
        return {"diverged": self._diverged}

    def finite(self) -> bool:
        """Whether all parameters are finite; waits for the device."""
        return bool(torch.stack([parameter.detach().isfinite().all() for parameter in self._parameters]).all())

    def update(self, loss: Tensor, lr: float) -> None:
        """Make the update of a loss after its backward pass.

        Once a loss was not finite no update is made any more. The device decides it, without the host having to wait:
        so when the host sees such a loss some steps later, the model is still as that loss found it.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["lr_multiple"]
        # What gradient scalers use: sets the flag where a value is not finite, and multiplies the values by one.
        torch._amp_foreach_non_finite_check_and_unscale_([loss.detach()], self._diverged, self._one)
        if self._clipping is not None:
            self._clipping.clip()
        self.optimizer.step()
        for spectral_norm, weight in self._spectral_norms:
            spectral_norm.advance(weight, unless=self._diverged)
        if self._memories:
            self.ranks.follow(self._memories)


def _clipping(spec: OptimizerSpec, model: nn.Module) -> AdaptiveClipping | None:
    return None if spec.adaptive_clipping is None else AdaptiveClipping(model, spec.adaptive_clipping)
