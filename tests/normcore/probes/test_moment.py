"""What probes are given is what the training computes with: held to a twin that trains the same steps unseen."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from normcore.curves import Curves
from normcore.instruments import Instruments
from normcore.learner import Learner
from normcore.menu.smoothness_probes import LandscapeProbeSpec
from normcore.noise.noise import start_step
from normcore.precision import LossScaler
from normcore.probes.moment import Moment
from normcore.records import Reading
from normcore.seeds import stream_seed
from normcore.spec import JobSpec
from normcore.statistics.layers import has_running_statistics

MLP = {"model": {"kind": "mlp", "hidden": [8]}, "data": {"kind": "digits", "size": 8}, "batch_size": 12}
VGG = {"model": {"kind": "vgg", "width": 0.0625, "dropout": 0.25}, "data": {"kind": "digits"}, "batch_size": 6}
SANTURKAR = {"noise": {"kind": "santurkar"}}
DROPPING = {"kind": "mlp", "hidden": [8], "dropout": 0.25}


def learner_of(folders, spec):
    torch.manual_seed(stream_seed(spec.seed, "torch"))
    learner = Learner(spec, torch.device("cpu"), folders)
    learner.begin()
    return learner


def job(changes=None, base=MLP):
    return JobSpec.model_validate(
        base | {"probes": [{"kind": "landscape", "every": 1}], "steps": 100} | (changes or {})
    )


def stepping(folders, spec, sees, ask, monkeypatch, lr=0.1, steps=3):
    """A learner that makes steps at each of which a probe asks."""

    class Asking:
        kind, evaluates = "landscape", False

        def __init__(self, **_):
            pass

        def read(self, moment):
            ask(moment)
            return Reading("landscape", moment.step, {}, {})

    Asking.sees = sees
    monkeypatch.setattr(LandscapeProbeSpec, "part", lambda _: Asking)
    learner = learner_of(folders, spec)
    instruments = Instruments(spec, learner, Curves(1, torch.device("cpu")), lambda: None)
    for step in range(1, steps + 1):
        instruments.attend(step)
        loss = learner.forward(step)[0]
        learner.backward(loss)
        instruments.before_update(lr)
        learner.update(loss, lr)
        instruments.after_update(lr)
        assert [type(record) for record in instruments.seen] == [Reading], instruments.seen
    return learner


def same(ours, theirs):
    return all((a is None and b is None) or torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def parameters(model):
    return [parameter.detach().clone() for parameter in model.parameters()]


KNOBS = {
    "plain": {},
    "clipped": {"optimizer": {"kind": "sgd", "lr": 0.1, "momentum": 0.9, "clip_norm": 0.01}},
    "clipped by unit": {"optimizer": {"kind": "sgd", "lr": 0.1, "adaptive_clipping": 0.001}},
    "spectral norm": {"weight": {"kind": "spectral"}},
    "average": {"ema": 0.5},
    "float16": {"precision": "float16"},
    "parts": {"accumulation": 3},
    "muon": {"optimizer": {"kind": "muon", "lr": 0.1}},
    "batch renorm": {"norm": {"kind": "batch_renorm", "warmup_steps": 0}},
    "power": {"norm": {"kind": "power", "warmup_steps": 0}},
}


@pytest.mark.parametrize("sees", ["step", "update"])
@pytest.mark.parametrize("knobs", KNOBS)
def test_a_moment_is_the_step_that_a_twin_makes(folders, monkeypatch, knobs, sees):
    spec, asked = job(SANTURKAR | KNOBS[knobs]), []
    twin = learner_of(folders, spec)

    def ask(moment):
        model, step = moment.model, moment.step
        before = parameters(twin.model)
        loss = twin.forward(step)[0]
        twin.backward(loss)
        gradient = [parameter.grad.clone() for parameter in twin.model.parameters()]
        twin.update(loss, 0.1)
        assert same(moment.origin, before)
        assert same(parameters(model), before)
        assert same(moment.gradient, gradient)
        assert all(parameter.grad is None for parameter in model.parameters())
        assert (moment.lr, model.training, len(moment.updated)) == (0.1, True, len(before) * (sees == "update"))
        assert sees == "step" or same(moment.updated, parameters(twin.model))
        again = moment.replay()
        assert torch.equal(again, loss)
        again.backward()
        assert same([parameter.grad for parameter in model.parameters()], gradient)
        asked.append(step)

    learner = stepping(folders, spec, sees, ask, monkeypatch)
    assert asked == [1, 2, 3]
    assert all(torch.equal(a, b) for a, b in zip(learner.state().values(), twin.state().values(), strict=True))
    ours, theirs = learner.model.state_dict(), twin.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_an_update_that_float16_left_out_is_none(folders, monkeypatch):
    monkeypatch.setattr(LossScaler, "FIRST", 2.0**40)
    moved = []
    stepping(
        folders,
        job({"precision": "float16"}),
        "update",
        lambda moment: moved.append(not same(moment.origin, moment.updated)),
        monkeypatch,
    )
    assert moved[0] is False


NORMS = [{"kind": "batch"}, {"kind": "batch_renorm", "warmup_steps": 0}, {"kind": "power", "warmup_steps": 0}]


@pytest.mark.parametrize("norm", NORMS, ids=lambda norm: norm["kind"])
@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("precision", ["float32", "float64", "bfloat16", "float16"])
def test_a_plain_loss_and_its_gradient_are_those_of_the_training(folders, monkeypatch, precision, accumulation, norm):
    spec = job({"precision": precision, "accumulation": accumulation, "norm": norm, "model": DROPPING} | SANTURKAR)
    # Power norm remembers gradients, part by part and with the scale of the loss: no single graph has these.
    remembers_backward = norm["kind"] == "power" and (accumulation > 1 or precision == "float16")

    def ask(moment):
        for _ in range(2):
            loss = moment.plain()()
            found = torch.autograd.grad(loss, list(moment.model.parameters()))
            # Without the scale of the loss, float16 loses the smallest parts of a gradient.
            close = {"rtol": 1e-3, "atol": 1e-4} if precision == "float16" else {"rtol": 1e-6, "atol": 1e-7}
            torch.testing.assert_close(loss, moment.replay().detach(), rtol=1e-6, atol=0)
            if not remembers_backward:
                for ours, theirs in zip(found, moment.gradient, strict=True):
                    torch.testing.assert_close(ours, theirs, **close)

    stepping(folders, spec, "step", ask, monkeypatch, steps=2)


@pytest.mark.parametrize("accumulation", [1, 3])
def test_a_loss_ahead_is_that_of_a_later_step_at_these_weights(folders, monkeypatch, accumulation):
    spec = job({"accumulation": accumulation, "model": DROPPING} | SANTURKAR)
    twin = learner_of(folders, spec)

    def ask(moment):
        twin.model.load_state_dict(moment.model.state_dict())
        expected = [twin.forward(moment.step + ahead)[0].item() for ahead in range(4)]
        assert [moment.plain(ahead)().item() for ahead in range(4)] == pytest.approx(expected, rel=1e-6)
        assert len(set(expected)) == 4
        # The batch of this step under the noise of the next: neither of the two losses.
        mixed = moment.plain(noise_ahead=1)().item()
        assert min(abs(mixed - expected[0]), abs(mixed - expected[1])) > 1e-4

    stepping(folders, spec, "step", ask, monkeypatch)


MODELS = {
    "vgg, noise, dropout": VGG | SANTURKAR,
    "vgg, batch renorm": VGG | {"norm": {"kind": "batch_renorm", "warmup_steps": 0}},
    "mlp, iterative": MLP | {"norm": {"kind": "iterative", "channels_per_group": 4}},
    "mlp, spectral norm": MLP | {"weight": {"kind": "spectral"}, "precision": "bfloat16"},
    "mlp, weight norm": MLP | {"norm": {"kind": "none"}, "weight": {"kind": "weight_norm"}},
    "resnet, group": MLP
    | {"model": {"kind": "resnet", "depth": 8, "width": 0.25}, "norm": {"kind": "group", "num_groups": 2}},
    "lstm": MLP | {"model": {"kind": "lstm", "hidden": 6}, "data": {"kind": "digits", "arrange": "rows", "size": 8}},
    "transformer": MLP
    | {
        "model": {"kind": "transformer", "depth": 1, "width": 8, "heads": 2, "dropout": 0.25},
        "data": {"kind": "digits", "arrange": "tokens"},
        "norm": {"kind": "layer"},
        "precision": "float16",
    },
    "deep linear": MLP | {"model": {"kind": "deep_linear"}, "data": {"kind": "gaussian"}, "accumulation": 2},
}


@pytest.mark.parametrize("name", MODELS)
def test_in_float64_a_loss_is_that_of_a_float64_copy_and_the_model_is_itself_again(folders, monkeypatch, name):
    spec = job(base=MODELS[name])

    def ask(moment):
        model = moment.model
        tensors = dict([*model.named_parameters(), *model.named_buffers()])
        places = {key: (id(value), value.data_ptr(), value.dtype) for key, value in tensors.items()}
        fresh = learner_of(folders, spec)
        # Norms that remember are as the first step found them.
        twin = copy.deepcopy(fresh.model).double()
        with moment.function(precision="float64") as loss:
            value = loss()
            gradient = torch.autograd.grad(value, list(model.parameters()), allow_unused=True)
        assert value.dtype == torch.float64
        tensors = dict([*model.named_parameters(), *model.named_buffers()])
        assert places == {key: (id(value), value.data_ptr(), value.dtype) for key, value in tensors.items()}
        expected = float64_loss(twin, spec, fresh, moment.step)
        assert value.item() == pytest.approx(expected.item(), rel=1e-12)
        for ours, theirs in zip(gradient, torch.autograd.grad(expected, list(twin.parameters())), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-14)
        # The same function as the training's, noise and dropout too.
        tolerance = {"float32": 1e-4}.get(spec.precision, 3e-2)
        assert value.item() == pytest.approx(moment.replay().item(), rel=tolerance)

    stepping(folders, spec, "step", ask, monkeypatch, steps=1)


def float64_loss(twin, spec, learner, step):
    """The loss, written down once more."""
    batch, parts = learner.batch(step), spec.accumulation
    size, losses = len(batch) // parts, []
    for part in range(parts):
        rows = slice(part * size, (part + 1) * size)
        inputs = batch.inputs[rows] if not batch.inputs.is_floating_point() else batch.inputs[rows].double()
        start_step(twin, spec.seed, (step - 1) * parts + part)
        outputs = twin(inputs) if batch.mask is None else twin(inputs, mask=batch.mask[rows])
        if learner.classifies:
            losses.append(nn.functional.cross_entropy(outputs, batch.labels[rows]) / parts)
        else:
            losses.append((outputs - batch.labels[rows].double()).square().sum())
    return torch.stack(losses).sum()


@pytest.mark.parametrize("precision", ["training", "float64"])
@pytest.mark.parametrize("name", ["vgg, noise, dropout", "mlp, iterative", "lstm"])
def test_frozen_is_the_loss_of_a_copy_whose_norms_evaluate(folders, monkeypatch, name, precision):
    spec = job({"seed": 1}, base=MODELS[name])

    def ask(moment):
        twin = copy.deepcopy(moment.model).double()
        frozen = [module for module in twin.modules() if has_running_statistics(module)]
        assert frozen
        for module in frozen:
            module.eval()
        before = {key: value.clone() for key, value in moment.model.named_buffers()}
        with moment.function(bn_mode="frozen", precision=precision) as loss:
            value = loss().item()
        expected = float64_loss(twin, spec, learner_of(folders, spec), moment.step).item()
        assert value == pytest.approx(expected, rel=1e-12 if precision == "float64" else 1e-5)
        assert value != pytest.approx(moment.plain()().item(), rel=1e-6)
        assert before.keys() == dict(moment.model.named_buffers()).keys()

    stepping(folders, spec, "step", ask, monkeypatch, steps=2)


def test_the_training_goes_on_with_the_same_optimizer_state_after_float64(folders, monkeypatch):
    spec = job({"optimizer": {"kind": "adamw"}, "ema": 0.5})

    def ask(moment):
        with moment.function(bn_mode="frozen", precision="float64") as loss:
            loss().backward()

    seen = stepping(folders, spec, "step", ask, monkeypatch)
    unseen = stepping(folders, spec, "step", lambda _: None, monkeypatch)
    assert same(seen.model.state_dict().values(), unseen.model.state_dict().values())
    states = ([learner.optimizer.state[p] for p in learner.model.parameters()] for learner in (seen, unseen))
    for ours, theirs in zip(*states, strict=True):
        assert ours.keys() == theirs.keys() != set()
        assert same(ours.values(), theirs.values())


@pytest.mark.parametrize(
    "name", ["vgg, noise, dropout", "mlp, weight norm from data", "mlp, spectral norm", "lstm", "transformer"]
)
def test_anew_is_the_job_at_its_initial_weights_and_disturbs_nothing(folders, monkeypatch, name):
    weight = {"kind": "weight_norm", "data_dependent_init": True}
    from_data = MLP | {"norm": {"kind": "none"}, "weight": weight, "ema": 0.5}
    spec = job(base=(MODELS | {"mlp, weight norm from data": from_data})[name])
    initial = learner_of(folders, spec)

    def ask(moment: Moment):
        before = torch.get_rng_state()
        other = moment.anew()
        assert same(other.model.state_dict().values(), initial.model.state_dict().values())
        assert other.model.state_dict().keys() == initial.model.state_dict().keys()
        assert torch.equal(torch.get_rng_state(), before)
        loss = other.forward(1)[0]
        other.backward(loss)
        other.update(loss, 1.0)

    seen = stepping(folders, spec, "step", ask, monkeypatch, steps=2)
    unseen = stepping(folders, spec, "step", lambda _: None, monkeypatch, steps=2)
    assert same(seen.model.state_dict().values(), unseen.model.state_dict().values())
    assert same(seen.state().values(), unseen.state().values())
    assert same(seen.model.state_dict().values(), initial.model.state_dict().values()) is False
    assert torch.equal(seen.forward(3)[0], unseen.forward(3)[0])


def test_generators_are_streams_by_name_and_step():
    def draws(seed, step, *names):
        moment = Moment(step, 0.1, nn.Linear(1, 1), SimpleNamespace, SimpleNamespace, (), seed=seed)
        return torch.rand(3, generator=moment.generator(*names)).tolist()

    assert draws(0, 1, "a") == draws(0, 1, "a")
    assert len({tuple(draws(*of)) for of in ((0, 1, "a"), (0, 2, "a"), (1, 1, "a"), (0, 1, "b"), (0, 1, "a", 2))}) == 5
