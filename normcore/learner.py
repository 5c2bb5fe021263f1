"""A model with its data and its optimizer: what the training loop moves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor, nn

from normcore.averages import Averages
from normcore.build import build_model
from normcore.compilation import Compiled
from normcore.data.batch import Batch
from normcore.data.dataset import Resident, load
from normcore.data.folders import DataFolders
from normcore.data.streamed import Streamed
from normcore.menu.optimizers import OptimizerSpec
from normcore.micro_batches import loss_with_gradients, micro_batches
from normcore.noise.noise import Drawing, start_step
from normcore.norms.norm import Norm
from normcore.objective import loss_of
from normcore.optimizers.adaptive_clipping import AdaptiveClipping
from normcore.optimizers.norm_clipping import NormClipping
from normcore.precision import PRECISIONS
from normcore.pulse import beat
from normcore.ranks import ALONE, Ranks
from normcore.records import Remark
from normcore.seeds import stream_seed
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
        data: The job's, where it has been loaded already.

    Raises:
        Refusal: The model cannot be built, the batch is larger than the data, or the dataset is not to be had.

    Attributes:
        model: In training mode.
        data: Resident on the device.
        optimizer: Fused.
        scaler: Of the loss, under float16.
        averages: Of the weights, where the job asks for them.
        classifies: Whether labels are classes, so that there is an accuracy.
    """

    def __init__(
        self,
        spec: JobSpec,
        device: torch.device,
        folders: DataFolders | None = None,
        ranks: Ranks = ALONE,
        data: Resident | Streamed | None = None,
    ) -> None:
        self.ranks, self.device, self._spec = ranks, device, spec
        self.data = load(spec, device=device, folders=folders) if data is None else data
        # Convolutions, with norms of every kind, are as fast or faster with the channels in the last place of memory.
        self.model = build_model(spec, device=device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer: torch.optim.Optimizer = spec.optimizer.part()(spec.optimizer, self.model)
        self._seed, self._parameters = ranks.seed(spec.seed), list(self.model.parameters())
        self._clippings = list(_clippings(spec.optimizer, self.model))
        self._spectral_norms = spectral_norms(self.model)
        self._remembering = [norm for norm in self.model.modules() if isinstance(norm, Norm) and norm.remembers]
        self._draws = any(isinstance(module, Drawing) and module.draws for module in self.model.modules())
        self._loss, self.classifies = loss_of(spec.data, spec.label_smoothing), spec.data.task == "classification"
        precision = PRECISIONS[spec.precision]
        self._autocasts, self._precision = precision.autocasts, precision.scope(device)
        self.scaler, self._parts = precision.scaler(device), spec.accumulation
        self.averages = None if spec.ema is None else Averages(self.model, spec.ema)
        self._compiled = Compiled(self.model) if spec.compile else None
        # Fused optimizers make no update while `found_inf` is 1.
        self._diverged, self._one = (f((), dtype=torch.float32, device=device) for f in (torch.zeros, torch.ones))
        # The same tensor, unless a step may also be left out because float16 overflowed.
        self._overflown = None if self.scaler is None else torch.zeros_like(self._diverged)
        self._blocked = self._diverged if self.scaler is None else torch.zeros_like(self._diverged)
        self.optimizer.found_inf = self._blocked

    def begin(self) -> None:
        """Let the first batch choose those initial values that are to be chosen by data.

        Only at the start of a training, not where one is resumed.
        """
        if wants_data(self.model):
            # The whole batch on every rank: it is to choose what it would choose on a single device.
            initialize_from_data(self.model, lambda: self._draw_and_infer(0, self.data.batch(0)))
        self.ranks.follow(self.model.state_dict().values())
        if self.averages is not None:
            self.averages.begin()

    def compile(self, step: int) -> Iterator[Remark]:
        """Compile the model where that was ordered, and say what came of it; a training pass tries it, and leaves no
        trace.

        Args:
            step: Updates done so far.
        """
        if self._compiled is not None:
            code, detail = self._compiled.attempt(lambda: self.forward(step + 1)[0])
            yield Remark(step, code, detail)

    def infer(self, batch: Batch) -> Tensor:
        """The model's outputs for a batch, `(N, num_outputs)` in float32 or better; labels do not count."""
        beat()
        with self._precision:
            model = self.model if self._compiled is None else self._compiled.callable()
            outputs = batch.through(model)
        return outputs.float() if self._autocasts else outputs

    def forward(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, outputs and labels of the batch of update number `step`, the first being 1, with its noise.

        The same step gives the same loss as long as the parameters are the same.
        """
        return self._forward(step, self.batch(step))

    def batch(self, step: int) -> Batch:
        """The batch of update number `step`, or this rank's part of it."""
        return self.ranks.rows(self.data.batch(step - 1))

    def remembered(self) -> list[Tensor]:
        """Copies of what norms remember of earlier passes."""
        return [buffer.clone() for buffer in self._memories()]

    def replay(self, step: int, remembered: list[Tensor] | None = None) -> Callable[[], Tensor]:
        """What computes the loss of `forward` as often as it is called, from a batch that is fetched once.

        Args:
            step: Whose batch and noise.
            remembered: What norms that remember earlier passes are put back to before each computation; where they
                stand now when not given. `forward` moves them: ask before it, to see what it saw.
        """
        batch = self.batch(step)
        kept = self.remembered() if remembered is None else remembered

        def again() -> Tensor:
            self._remember(kept)
            return self._forward(step, batch)[0]

        return again

    def plain_replay(
        self,
        step: int,
        remembered: list[Tensor] | None = None,
        dtype: torch.dtype | None = None,
        noise_ahead: int = 0,
    ) -> Callable[[], Tensor]:
        """Like `replay`, as one graph of eager operations, of which there are second derivatives.

        A batch in micro-batches takes the memory of all of them. Under float16 the loss has no scale, without which the
        smallest gradients are lost. Where a norm remembers gradients of earlier passes (power norm), those of one graph
        are not those of micro-batches or of a scaled loss. Of several ranks each has the loss of its rows, and
        the mean of its gradients over the ranks is the gradient of the whole batch.

        Args:
            step: Whose batch and noise.
            remembered: As for `replay`.
            dtype: What to compute in, without autocast; the model must have it. As in training where not given.
            noise_ahead: Steps from this one to that whose noise and dropout are drawn.
        """
        batch = self.batch(step) if dtype is None else self.batch(step).to(dtype)
        kept = self.remembered() if remembered is None else remembered
        scope = self._precision if dtype is None else nullcontext()
        widens = self._autocasts and dtype is None
        weight = 1 / self._parts if self.classifies else float(self.ranks.count)

        def again() -> Tensor:
            beat()
            self._remember(kept)
            losses: list[Tensor] = []
            for number, part in enumerate(micro_batches(batch, self._parts)):
                if self._draws:
                    start_step(self.model, self._seed, (step - 1 + noise_ahead) * self._parts + number)
                with scope:
                    outputs = part.through(self.model)
                losses.append(self._loss(outputs.float() if widens else outputs, part.labels))
            return torch.stack(losses).sum() * weight

        return again

    def anew(self) -> Learner:
        """Another learner of the same job and data, at the initial weights; torch's generators are left alone."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(stream_seed(self._seed, "torch"))
            other = Learner(self._spec, self.device, None, self.ranks, self.data)
            other.begin()
        return other

    def _memories(self) -> list[Tensor]:
        """What norms remember of earlier passes."""
        return [buffer for norm in self._remembering for buffer in norm.buffers()]

    def _remember(self, kept: list[Tensor]) -> None:
        with torch.no_grad():
            for buffer, value in zip(self._memories(), kept, strict=True):
                buffer.copy_(value)

    def _forward(self, step: int, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        if self._parts == 1 and self.scaler is None:
            outputs = self._draw_and_infer(step - 1, batch)
            loss = self._loss(outputs, batch.labels)
        else:
            kept: list[Tensor] = []
            parts = [
                partial(self._part, (step - 1) * self._parts + number, part, kept)
                for number, part in enumerate(micro_batches(batch, self._parts))
            ]
            scale = None if self.scaler is None else self.scaler.scale
            loss, outputs = loss_with_gradients(parts, self._parameters, scale), torch.cat(kept)
        return self.ranks.joined(loss, self.model, mean=self.classifies), outputs, batch.labels

    def _part(self, draw: int, batch: Batch, kept: list[Tensor]) -> Tensor:
        """What a micro-batch adds to the loss of its batch."""
        outputs = self._draw_and_infer(draw, batch)
        kept.append(outputs.detach())
        loss = self._loss(outputs, batch.labels)
        return loss / self._parts if self.classifies else loss

    def _draw_and_infer(self, draw: int, batch: Batch) -> Tensor:
        if self._draws:
            start_step(self.model, self._seed, draw)
        return self.infer(batch)

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
        tensors = {"diverged": self._diverged}
        if self.scaler is not None:
            tensors |= self.scaler.state()
        if self.averages is not None:
            tensors |= {f"ema.{name}": value for name, value in self.averages.state().items()}
        return tensors

    def diverged(self) -> bool:
        """Whether a loss was not finite; waits for the device."""
        return bool(self._diverged)

    def finite(self) -> bool:
        """Whether all parameters are finite; waits for the device."""
        return bool(torch.stack([parameter.detach().isfinite().all() for parameter in self._parameters]).all())

    def update(self, loss: Tensor, lr: float) -> None:
        """Make the update of a loss after its backward pass.

        Once a loss was not finite no update is made any more. The device decides it, without the host having to wait:
        so when the host sees such a loss some steps later, the model is still as that loss found it. Under float16 the
        update of a gradient that overflowed is not made either, and that is no divergence: the next are.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["lr_multiple"]
        # What gradient scalers use: sets the flag where a value is not finite, and multiplies the values by one.
        torch._amp_foreach_non_finite_check_and_unscale_([loss.detach()], self._diverged, self._one)
        if self._overflown is not None:
            gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
            self._overflown.zero_()
            torch._amp_foreach_non_finite_check_and_unscale_(gradients, self._overflown, self._one)
            torch.maximum(self._diverged, self._overflown, out=self._blocked)
        for clipping in self._clippings:
            clipping.clip()
        self.optimizer.step()
        for spectral_norm, weight in self._spectral_norms:
            spectral_norm.advance(weight, unless=self._blocked)
        if self._remembering:
            self.ranks.follow(self._memories())
        if self.averages is not None:
            self.averages.advance(unless=self._blocked)
        if self.scaler is not None and self._overflown is not None:
            self.scaler.advance(self._overflown, unless=self._diverged)


def _clippings(spec: OptimizerSpec, model: nn.Module) -> Iterator[AdaptiveClipping | NormClipping]:
    if spec.adaptive_clipping is not None:
        yield AdaptiveClipping(model, spec.adaptive_clipping)
    # The last: the limit on the whole holds of what the optimizer is given.
    if spec.clip_norm is not None:
        yield NormClipping(model.parameters(), spec.clip_norm)
