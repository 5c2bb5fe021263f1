"""The walk over the menu: every model with every norm trains, under each weight method and in each precision, or is
refused by the preview with the reason.

Every pair of model and norm is walked with each weight method in float64 and in each precision without one; of the
other pairs of weight method and precision each takes a few, such that every model and every norm meets them all.
`pytest --whole-walk` walks all of them for every pair, in some minutes.
"""

from itertools import product
from typing import Any, get_args

import pytest
import torch

from normcore.learner import Learner
from normcore.preview import preview
from normcore.refusal import Refusal
from normcore.spec import MENU, JobSpec, kind_of

N = 4
SMALL: dict[str, dict[str, Any]] = {
    "depth": {"resnet": 8, "plain": 8, "deep_linear": 3, "transformer": 1},
    "width": {"vgg": 1 / 16, "resnet": 1 / 4, "plain": 1 / 4, "inception_small": 1 / 16},
}
COUNTS = {"num_groups": 2, "channels_per_group": 2, "virtual_batch_size": 2, "virtual_ranks": 2}
"""Knobs of norms that split a batch or its channels, for as few as there are here."""

STEP_SIZES = tuple(10.0**-power for power in range(-2, 11))
STEPS = 2
PRECISIONS = get_args(JobSpec.model_fields["precision"].annotation)
WEIGHTS = [kind_of(spec) for spec in MENU["weight"]]
ARMS = list(product(WEIGHTS, PRECISIONS))

OVERFLOWS = {("vgg", "none", "standardized", "float16")}
"""Filters of norm 3 and more in every layer and nothing to undo them: outputs of 500,000, where float16 ends at 65,504.
"""


def data_for(model: Any) -> dict[str, Any]:
    if "images" in model.takes:
        return {"kind": "digits", "size": 8 if "sequences" in model.takes else 32}
    return {"kind": "gaussian"} if "vectors" in model.takes else {"kind": "digits", "size": 8, "arrange": "rows"}


def knobs(spec: Any) -> dict[str, Any]:
    kind = kind_of(spec)
    small = {knob: sizes[kind] for knob, sizes in SMALL.items() if kind in sizes and knob in spec.model_fields}
    small |= {knob: value for knob, value in COUNTS.items() if knob in spec.model_fields}
    return {"kind": kind} | small | ({"hidden": [6, 4]} if "hidden" in spec.model_fields and kind == "mlp" else {})


@pytest.mark.parametrize("norm", MENU["norm"], ids=kind_of)
@pytest.mark.parametrize("model", MENU["model"], ids=kind_of)
def test_what_the_menu_offers_trains_or_is_refused_with_the_reason(model, norm, folders, pytestconfig):
    if kind_of(model) == "timm":
        pytest.importorskip("timm")
    warmup = {"warmup_steps": 1, "r_steps": 3, "d_steps": 2}
    warm = {knob: value for knob, value in warmup.items() if knob in norm.model_fields}
    place = MENU["model"].index(model) + MENU["norm"].index(norm)
    for weight, precision in ARMS if pytestconfig.getoption("whole_walk") else some_of_the_arms(place):
        spec = JobSpec.model_validate(
            {
                "model": knobs(model),
                "norm": knobs(norm) | warm,
                "weight": {"kind": weight},
                "precision": precision,
                "data": data_for(model),
                "batch_size": N,
            }
        )
        try:
            learner = Learner(spec, torch.device("cpu"), folders)
            learner.begin()
            cell = (kind_of(model), kind_of(norm), weight, precision)
            assert trains(learner) is (cell not in OVERFLOWS), cell
        except Refusal:
            assert preview(spec, folders).reasons, (weight, precision)


def some_of_the_arms(place: int) -> list[tuple[str, str]]:
    """All with no weight method or in float64, and of the others as many as there are weight methods: at each place on
    the diagonals of models and norms other ones.
    """
    low = [precision for precision in PRECISIONS if precision != "float64"]
    chosen = {(weight, low[(place + number) % len(low)]) for number, weight in enumerate(WEIGHTS)}
    return [arm for arm in ARMS if arm[0] == "none" or arm[1] == "float64" or arm in chosen]


def trains(learner: Learner) -> bool:
    """Whether the loss of a batch falls in each of a few steps along its gradient, of some size, and all is finite.

    Under autocast the gradient is that of the training, and the loss is compared without: a fall that is smaller than
    the rounding of half precision is one.
    """
    parameters = list(learner.model.parameters())
    again, exact = learner.replay(1), learner.plain_replay(1, dtype=parameters[0].dtype)
    for _ in range(STEPS):
        loss = again()
        learner.optimizer.zero_grad()
        loss.backward()
        while learner.scaler is not None and learner.scaler.scale > 1e-3 and not all_finite(parameters):
            # The scale begins above what gradients can be multiplied by, and finds its way down.
            learner.scaler.scale.div_(16)
            learner.optimizer.zero_grad()
            loss = again()
            loss.backward()
        if not all_finite(parameters):
            return False
        start, before = [p.detach().clone() for p in parameters], exact()
        for size in STEP_SIZES:
            with torch.no_grad():
                for p, origin in zip(parameters, start, strict=True):
                    p.copy_(origin - size * p.grad)
                after = exact()
            if after < before:
                break
        else:
            return False
    return bool(loss.isfinite())


def all_finite(parameters: list[torch.nn.Parameter]) -> bool:
    return all(p.grad is not None and bool(p.grad.isfinite().all()) for p in parameters)
