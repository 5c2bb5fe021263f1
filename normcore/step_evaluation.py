"""What a training evaluates at a step, and with which statistics."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator

from normcore.data.batch import Batch
from normcore.evaluation import BATCH, Evaluation, evaluate
from normcore.learner import Learner
from normcore.menu.norms import BatchNormSpec
from normcore.noise.noise import Drawing, Noise, start_step
from normcore.norms.diagnosis import worst_diagnoses
from normcore.records import Metrics, Point
from normcore.seeds import stream_seed
from normcore.spec import JobSpec
from normcore.statistics.layers import has_running_statistics
from normcore.statistics.recompute import recompute_statistics, recomputed_statistics

RECOMPUTE_BATCHES = 100
"""Training batches, at most, that running statistics are recomputed from at the end."""

ESTIMATE_BATCHES = 32
"""Training batches, at most, of the pass that statistics are gathered in where they are no moving averages: about as
much work as ten training steps, before each evaluation and checkpoint."""


def gather_statistics(spec: JobSpec, learner: Learner) -> None:
    """Where evaluation uses other statistics than moving averages, gather them over the first training batches, with
    the noise of training.

    They are a function of the weights alone, so it changes no bit of the training when and how often that is done, and
    a checkpoint evaluates like the model it was taken of.
    """
    if isinstance(spec.norm, BatchNormSpec) and spec.norm.estimator != "ema":
        steps = range(1, min(learner.data.steps_per_epoch, ESTIMATE_BATCHES) + 1)
        estimator, model = spec.norm.estimator, learner.model
        recompute_statistics(model, steps, estimator=estimator, infer=lambda step: learner.replay(step)(), noise=True)


def evaluate_step(
    spec: JobSpec, learner: Learner, step: int, *, last: bool
) -> Generator[Metrics, None, tuple[float, Evaluation | None]]:
    """The evaluation at a step, with what norms say of their own arithmetic in the step's training pass; at the last
    one, where there is noise, also with statistics that noise did not mislead (`_recomputed`), and with the noise of
    training under the statistics of evaluation (`_noisy`); and with the average of the weights (`_ema`), where one is
    kept.

    Returns the loss on the test set, and the evaluation of the validation set where there is one.
    """
    model, infer, data = learner.model, learner.infer, learner.data
    test = evaluate(learner, data.test_batches(BATCH))
    validation = evaluate(learner, data.validation_batches(BATCH)) if data.num_validation else None
    held_out = () if validation is None else validation.points(step, "validation")
    diagnoses = (Point(f"norm/{name}", step, value) for name, value in worst_diagnoses(model).items())
    yield Metrics(step, (*test.points(step, "test"), *held_out, *diagnoses, *_scaling(learner, step)))
    if learner.averages is not None:
        with learner.averages.in_place(model):
            gather_statistics(spec, learner)
            averaged = evaluate(learner, data.test_batches(BATCH))
        yield Metrics(step, averaged.points(step, "test", "_ema"))
    modules = list(model.modules())
    if last and any(isinstance(module, Noise) and module.draws for module in modules):
        disturbed = evaluate(learner, _disturbed(spec, learner, data.test_batches(BATCH)))
        yield Metrics(step, disturbed.points(step, "test", "_noisy"))
    noisy = any(isinstance(module, Drawing) and module.draws for module in modules)
    if last and noisy and any(map(has_running_statistics, modules)):
        batches = (learner.batch(1 + number) for number in range(min(data.steps_per_epoch, RECOMPUTE_BATCHES)))
        with recomputed_statistics(model, batches, infer=infer):
            recomputed = evaluate(learner, data.test_batches(BATCH))
        yield Metrics(step, recomputed.points(step, "test", "_recomputed"))
    return test.loss, validation


def _scaling(learner: Learner, step: int) -> tuple[Point, ...]:
    """How the scale of the loss fares, under float16."""
    if learner.scaler is None:
        return ()
    scale, skipped = learner.scaler.scale.item(), learner.scaler.skipped.item()
    return Point("train/loss_scale", step, scale), Point("train/skipped_steps", step, skipped)


def _disturbed(spec: JobSpec, learner: Learner, batches: Iterable[Batch]) -> Iterator[Batch]:
    """Batches for an evaluation, at each of which the noise layers draw as in training, from a stream of their own;
    all other layers evaluate.
    """
    layers = [module for module in learner.model.modules() if isinstance(module, Noise)]
    for number, batch in enumerate(batches):
        for layer in layers:
            layer.train()
        start_step(learner.model, stream_seed(spec.seed, "noisy test"), number)
        yield batch
