"""The training loop: from a spec to a stream of records. It does not know who listens."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from math import isfinite, nan

import torch
from torch import Tensor

from normcore.best import Best, best_of
from normcore.companions import accompanied
from normcore.curves import Curves
from normcore.data.folders import DataFolders
from normcore.data.measure import measured
from normcore.determinism import isolated
from normcore.divergence import first_nonfinite_layer
from normcore.foresight import verify
from normcore.instruments import Instruments
from normcore.learner import Learner
from normcore.ranks import Ranks
from normcore.records import (
    Checkpoint,
    Diverged,
    Finished,
    Metrics,
    Record,
    Remark,
    Snapshot,
    Stopped,
)
from normcore.schedules.schedule import Schedule
from normcore.seeds import stream_seed
from normcore.snapshot import restore, take
from normcore.spec import JobSpec
from normcore.statistics.layers import has_running_statistics
from normcore.step_evaluation import evaluate_step, gather_statistics


def train(
    spec: JobSpec,
    *,
    device: str | torch.device = "cpu",
    folders: DataFolders | None = None,
    resume: Snapshot | None = None,
    stop: Callable[[], bool] | None = None,
    others: Mapping[str, Mapping[str, Tensor]] | None = None,
) -> Iterator[Record]:
    """Train as the spec says, and yield what happens as it happens.

    A step counts the updates done: the points of update k carry step k, the first being 1. Records come in the order of
    their steps, every quarter of a second or 256 steps and at every event: `Metrics` (curves), `Reading` (a probe),
    `Checkpoint` (always after the metrics up to its step; also after an evaluation that was the best so far of the
    validation set, where there is one), and at the end `Figure` for each probe and one of

    - `Finished`: all steps are done, and the last checkpoint was written;
    - `Stopped`: `stop()` was true after a step; a checkpoint came before;
    - `Diverged`: the loss of a step was not finite. Its update was not made, nor any after it, so the layer is named
      in the model that gave that loss; no checkpoint comes after the last finite step's. Or the update of a step left
      parameters, or after the last one a test loss, that are not finite.

    With `deterministic`, a training resumed from any checkpoint has the same bits as one that was never interrupted, on
    the same machine with the same number of threads; the `Remark` `resume_verified` after its first step says that this
    step's loss is the one that the checkpoint foretold, or `resume_differs` that it is not. Probes change no bit. While
    the caller holds a record, torch's global state (random generators, deterministic mode, grad mode) is the caller's;
    the generator may be closed at any time.

    A job of several devices runs in as many processes, of which this is the first: it alone yields records, asks
    `stop` and evaluates. See `normcore.ranks`; only one such training at a time in a process.

    Args:
        spec: The job; its `device` is a wish to whoever chooses `device`.
        device: Where to train; of several GPUs the first.
        folders: Where datasets lie; below the working directory when not given.
        resume: Go on from this snapshot of the same job.
        stop: Asked after every step whether to stop there.
        others: Last weights of other jobs, for the probes that name one, as state dicts by the names that they are
            named by. One that is missing fails its probe, and not the training.

    Raises:
        Refusal: The model cannot be built, the batch is larger than the data, or the dataset is not to be had.
        ValueError: The snapshot is of another model, or of a later step than the last.
        ModuleNotFoundError: There are probes and no matplotlib to draw their figures.

    Example:
        >>> spec = {"model": {"kind": "mlp"}, "data": {"kind": "digits", "size": 8}, "steps": 50}
        >>> records = list(train(JobSpec.model_validate(spec)))
        >>> {type(record).__name__ for record in records} == {"Metrics", "Checkpoint", "Finished"}
        True
        >>> [round(p.value, 1) for m in records if isinstance(m, Metrics) for p in m.points if p.key == "test/accuracy"]
        [0.9]
    """
    device = torch.device(device)
    spec = measured(spec, folders)
    if resume is not None and resume.step > spec.num_steps:
        raise ValueError(
            f"a snapshot must be of at most {spec.num_steps} steps, those of the job, got one of step {resume.step}; "
            f"raise the job's steps"
        )
    if spec.probes and find_spec("matplotlib") is None:
        raise ModuleNotFoundError(
            "the figures of probes are drawn with matplotlib, which is not installed; "
            "install it: pip install 'normcore[figures]'"
        )
    records = _train(spec, device, folders, resume, stop, Ranks(0, spec.devices), others)
    if spec.devices > 1:
        records = accompanied(records, spec, device, folders, resume, others)
    return isolated(records, deterministic=spec.deterministic, device=device, tf32=spec.precision == "tf32")


def attend(
    spec: JobSpec,
    ranks: Ranks,
    *,
    device: torch.device,
    folders: DataFolders | None = None,
    resume: Snapshot | None = None,
    others: Mapping[str, Mapping[str, Tensor]] | None = None,
) -> None:
    """Be a rank of a training other than the first, in a process group that it is in already: compute, and say nothing.

    The arguments are those of `train`.
    """
    records = _train(spec, device, folders, resume, None, ranks, others)
    for _ in isolated(records, deterministic=spec.deterministic, device=device, tf32=spec.precision == "tf32"):
        pass


def _train(
    spec: JobSpec,
    device: torch.device,
    folders: DataFolders | None,
    resume: Snapshot | None,
    stop: Callable[[], bool] | None,
    ranks: Ranks,
    others: Mapping[str, Mapping[str, Tensor]] | None,
) -> Generator[Record]:
    torch.manual_seed(stream_seed(ranks.seed(spec.seed), "torch"))
    learner = Learner(spec, device, folders, ranks)
    model = learner.model
    schedule: Schedule = spec.schedule.part()(spec.optimizer.lr, spec.num_steps, **spec.schedule.knobs())
    curves = Curves(spec.record_every, device, classifies=learner.classifies, ranks=ranks)
    instruments = Instruments(spec, learner, curves, partial(gather_statistics, spec, learner), others)
    done, best = _begin(spec, learner, instruments, resume)

    yield from ranks.remarks(model, done)
    yield from _remarks(spec, learner, done)
    for step in range(done + 1, spec.num_steps + 1):
        instruments.attend(step)
        loss, outputs, labels = learner.forward(step)
        learner.backward(loss)
        lr = schedule.lr(step)
        instruments.before_update(lr)
        learner.update(loss, lr)
        instruments.after_update(lr)
        curves.remember(step, lr, loss, outputs, labels)

        last = step == spec.num_steps
        evaluating = last or step % spec.evaluate_every == 0
        saving = last or step % spec.checkpoint_every == 0
        # The clock and the signals of one process, told to all; from host to host, so that no device waits.
        stopping, full = ranks.agree(not last and stop is not None and stop(), curves.full)
        if not (full or instruments.seen or evaluating or saving or stopping or step == done + 1):
            continue

        window = curves.flush(step)
        if window.points:
            yield Metrics(window.step, window.points)
        yield from _verification(resume, step, loss)
        if window.bad_loss is not None:
            bad = window.step + 1
            yield from instruments.figures()
            layer = ranks.first_layer(model, first_nonfinite_layer(model, learner.replay(bad)))
            yield Diverged(bad, window.bad_loss, layer)
            return
        yield from instruments.keep()
        if evaluating or saving or stopping:
            gather_statistics(spec, learner)
        test_loss, validation = (
            (yield from evaluate_step(spec, learner, step, last=last)) if evaluating else (nan, None)
        )
        best = best if validation is None else best_of(best, step, validation)
        is_best = best is not None and best.step == step
        saving = saving or is_best
        if (last and not isfinite(test_loss)) or ((saving or stopping) and not learner.finite()):
            yield from instruments.figures()
            layer = ranks.first_layer(model, first_nonfinite_layer(model, learner.replay(step)))
            yield Diverged(step, test_loss, layer)
            return
        if saving or stopping:
            past = replace(instruments.past(), best=best)
            yield Checkpoint(step, take(spec, step, learner, past), last, is_best)
        if stopping:
            yield Stopped(step)
            return
        curves.resume_clock()

    yield from instruments.figures()
    yield Finished(spec.num_steps)


def _begin(
    spec: JobSpec, learner: Learner, instruments: Instruments, resume: Snapshot | None
) -> tuple[int, Best | None]:
    """Start or go on: the updates done so far, and the best evaluation of them."""
    if resume is None:
        learner.begin()
        return 0, None
    past = restore(resume, spec, learner)
    instruments.restore(past)
    return resume.step, past.best


def _verification(resume: Snapshot | None, step: int, loss: Tensor) -> Iterator[Remark]:
    """At the first step after a resume: whether it was the step that the snapshot foretold."""
    if resume is not None and step == resume.step + 1 and (remark := verify(resume, loss)) is not None:
        yield remark


def _remarks(spec: JobSpec, learner: Learner, step: int) -> Iterator[Remark]:
    """What a reader should know of how this training computes."""
    if spec.precision == "tf32" and learner.device.type != "cuda":
        yield Remark(step, "tf32-is-float32", "tf32 is a way in which GPUs multiply; on this device it is float32")
    if spec.accumulation > 1:
        size = spec.batch_size // (spec.devices * spec.accumulation)
        detail = f"each update is that of {spec.accumulation} micro-batches of {size} samples"
        synchronized = spec.norm.kind == "sync" and spec.devices > 1
        if any(map(has_running_statistics, learner.model.modules())):
            seen = f"{size * spec.devices} samples of one on all devices" if synchronized else f"{size} samples of one"
            detail += (
                f"; norms with batch statistics see the {seen}, and their running statistics "
                f"move {spec.accumulation} times an update"
            )
        yield Remark(step, "micro-batches", detail)
    yield from learner.compile(step)
