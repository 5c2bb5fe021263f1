import pytest
from pydantic import ValidationError

from api.mistakes import mistakes_in
from normcore.spec import MENU, JobSpec, kind_of

MODEL_AND_DATA = {"model": {"kind": "mlp"}, "data": {"kind": "digits"}}
EVERY = (
    "every must be a whole number of steps of at least 1, or one of the occasions epochs, log_spaced, budget such as "
    '{"kind": "budget"}'
)


def every(given):
    return {"probes": [{"kind": "landscape", "every": given}]}


def mistakes(changes):
    body = {**MODEL_AND_DATA, **changes} if isinstance(changes, dict) else changes
    with pytest.raises(ValidationError) as raised:
        JobSpec.model_validate(body)
    return mistakes_in([{**error, "loc": ("body", *error["loc"])} for error in raised.value.errors()])


@pytest.mark.parametrize(
    ("changes", "pointer", "code", "detail"),
    [
        (
            {"norm": {"kind": "spectral"}},
            "/norm/kind",
            "unknown-kind",
            'there is no norm of kind "spectral"; on offer: none, batch, ghost, sync',
        ),
        ({"norm": {"kind": ["batch"]}}, "/norm/kind", "unknown-kind", "there is no norm of kind a list of 1; on offer"),
        ({"weight": {"kind": "x"}}, "/weight/kind", "unknown-kind", 'no weight of kind "x"; on offer: none'),
        (
            {"probes": [{"kind": "x"}]},
            "/probes/0/kind",
            "unknown-kind",
            'no probes of kind "x"; on offer: landscape, train_eval_gap',
        ),
        ({"norm": {}}, "/norm", "missing-kind", "norm must name its kind, got none; on offer: none, batch"),
        ({"norm": "batch"}, "/norm", "wrong-type", 'norm must be an object, got "batch"'),
        ({"norm": None}, "/norm", "wrong-type", "norm must be an object, got null"),
        (
            {"norm": {"kind": "batch", "num_groups": 4}},
            "/norm/num_groups",
            "foreign-knob",
            "num_groups is a knob of group and evonorm_s0, not of batch; leave it out, or choose such a kind",
        ),
        (
            {"norm": {"kind": "layer", "lr": 4}},
            "/norm/lr",
            "foreign-knob",
            "lr is a knob of optimizer, not of norm layer; move it there, or leave it out",
        ),
        ({"lr": 0.1}, "/lr", "foreign-knob", "lr is a knob of optimizer, not of a job; move it there"),
        (
            {"optimizer": {"kind": "adamw", "learning_rate": 0.1}},
            "/optimizer/learning_rate",
            "unknown-field",
            "optimizer adamw has no field learning_rate; it has kind, lr, beta1, beta2, eps, weight_decay, decay_norm",
        ),
        ({"weight": {"kind": "none", "foo": 1}}, "/weight/foo", "unknown-field", "weight none has no field foo"),
        (
            {"probes": [{"foo": 1}]},
            "/probes/0",
            "missing-kind",
            "probes.0 must name its kind, got none; on offer: landscape, train_eval_gap",
        ),
        ({"batchsize": 3}, "/batchsize", "unknown-field", "a job has no field batchsize; it has model, data, norm"),
        ({"a/b~c": 3}, "/a~1b~0c", "unknown-field", "a job has no field a/b~c"),
        ({"steps": "10"}, "/steps", "wrong-type", 'steps must be an integer, got "10"'),
        ({"steps": True}, "/steps", "wrong-type", "steps must be an integer, got true"),
        ({"seed": 1.0}, "/seed", "wrong-type", "seed must be an integer, got 1.0"),
        ({"steps": -1}, "/steps", "greater-than-equal", "steps must be greater than or equal to 1, got -1"),
        ({"norm": {"kind": "batch", "eps": 0}}, "/norm/eps", "greater-than", "norm.eps must be greater than 0, got 0"),
        ({"norm": {"kind": "batch", "eps": "1"}}, "/norm/eps", "wrong-type", 'norm.eps must be a number, got "1"'),
        (
            {"optimizer": {"kind": "sgd", "lr": float("inf")}},
            "/optimizer/lr",
            "finite-number",
            "optimizer.lr must be a finite number, got a number beyond the range of a double",
        ),
        (
            {"model": {"kind": "vgg", "depth": 12}},
            "/model/depth",
            "not-on-offer",
            "model.depth must be 11, 13, 16 or 19, got 12",
        ),
        (
            {"model": {"kind": "mlp", "hidden": [4, "a"]}},
            "/model/hidden/1",
            "wrong-type",
            'model.hidden.1 must be an integer, got "a"',
        ),
        ({"model": {"kind": "mlp", "hidden": 4}}, "/model/hidden", "wrong-type", "model.hidden must be a list, got 4"),
        (
            {"model": {"kind": "mlp", "hidden": [1] * 257}},
            "/model/hidden",
            "too-long",
            "model.hidden is wrong: tuple must have at most 256 items after validation, not 257, got a list of 257",
        ),
        ({"deterministic": 1}, "/deterministic", "wrong-type", "deterministic must be true or false, got 1"),
        ({"labels": {"a": 3}}, "/labels/a", "wrong-type", "labels.a must be a string, got 3"),
        ({"labels": {"": "x"}}, "/labels/", "string-too-short", "must have at least 1 character"),
        (
            {"labels": {"a": "x" * 201}},
            "/labels/a",
            "string-too-long",
            f'labels.a is wrong: string must have at most 200 characters, got "{"x" * 39}...',
        ),
        (
            {"steps": 3, "epochs": 4},
            "/epochs",
            "invalid-value",
            "give steps or epochs, not both, got steps 3 and epochs 4",
        ),
        (
            {"optimizer": {"kind": "sgd", "nesterov": True}},
            "/optimizer",
            "invalid-value",
            "nesterov needs a momentum above 0, got momentum 0; set momentum, or nesterov to false",
        ),
        (every(0), "/probes/0/every", "invalid-value", f"{EVERY}, got 0"),
        (every(True), "/probes/0/every", "invalid-value", f"{EVERY}, got true"),
        (every(2.5), "/probes/0/every", "invalid-value", f"{EVERY}, got 2.5"),
        (every("5"), "/probes/0/every", "invalid-value", f'{EVERY}, got "5"'),
        (every(None), "/probes/0/every", "invalid-value", f"{EVERY}, got null"),
        (every({}), "/probes/0/every", "invalid-value", f"{EVERY}, got an object without kind"),
        (every({"kind": "x"}), "/probes/0/every", "invalid-value", f'{EVERY}, got kind "x"'),
        (every({"kind": ["budget"]}), "/probes/0/every", "invalid-value", f'{EVERY}, got kind ["budget"]'),
        (
            every({"kind": "budget", "fraction": 0}),
            "/probes/0/every/fraction",
            "greater-than",
            "probes.0.every.fraction must be greater than 0, got 0",
        ),
        (
            every({"kind": "epochs", "every": "2"}),
            "/probes/0/every/every",
            "wrong-type",
            'probes.0.every.every must be an integer, got "2"',
        ),
        (
            every({"kind": "budget", "per_decade": 5}),
            "/probes/0/every/per_decade",
            "foreign-knob",
            "per_decade is a knob of log_spaced, not of budget; leave it out, or choose such a kind",
        ),
        (
            every({"kind": "budget", "percent": 5}),
            "/probes/0/every/percent",
            "unknown-field",
            "every budget has no field percent; it has kind, fraction",
        ),
        (
            every({"kind": "budget"}) | {"deterministic": True},
            "/probes/0/every",
            "invalid-value",
            "a deterministic job must read its probes at steps that no clock decides, got a budget for probe landscape",
        ),
        (
            {"probes": [{"kind": "landscape", "preset": ["vgg"]}]},
            "/probes/0",
            "invalid-value",
            "preset must be one of vgg, deep_linear, got ['vgg']",
        ),
        (
            {"probes": [{"kind": "landscape", "preset": "vgg", "high": 2.0}]},
            "/probes/0",
            "invalid-value",
            "give a preset or low and high, not both, got preset 'vgg' and high",
        ),
        ([], "", "wrong-type", "the body must be an object, got a list of 0"),
        ("x", "", "wrong-type", 'the body must be an object, got "x"'),
    ],
)
def test_a_mistake_names_its_place_both_values_and_the_remedy(changes, pointer, code, detail):
    (mistake,) = mistakes(changes)
    assert (mistake.pointer, mistake.code) == (pointer, code)
    assert detail in mistake.detail


LANDSCAPE = {"kind": "landscape", "every": 9}


@pytest.mark.parametrize(
    ("changes", "pointer"),
    [
        ({"batch_size": 6, "devices": 4}, "/batch_size"),
        ({"batch_size": 8, "devices": 2, "batch_size_per_device": 3}, "/batch_size_per_device"),
        ({"batch_size": 8, "accumulation": 3}, "/accumulation"),
        ({"epochs": 100_000, "batch_size": 1}, "/epochs"),
        ({"model": {"kind": "resnet", "zero_last_gamma": True}, "norm": {"kind": "none"}}, "/model/zero_last_gamma"),
        ({"probes": [LANDSCAPE, {"kind": "train_eval_gap"}, LANDSCAPE]}, "/probes/2"),
        ({"probes": [{"kind": "train_eval_gap", "every": 1}, LANDSCAPE], "steps": 5}, "/probes/1/every"),
        ({"schedule": {"kind": "constant", "warmup_steps": 9}, "steps": 5}, "/schedule/warmup_steps"),
        ({"schedule": {"kind": "step", "milestones": [2, 9]}, "steps": 5}, "/schedule/milestones/1"),
        ({"norm": {"kind": "power", "warmup_steps": 9}, "steps": 5}, "/norm/warmup_steps"),
        ({"data": {"kind": "gaussian"}, "model": {"kind": "deep_linear"}, "label_smoothing": 0.1}, "/label_smoothing"),
        ({"data": {"kind": "digits", "classes_per_batch": 11}}, "/data/classes_per_batch"),
    ],
)
def test_fields_that_do_not_go_together_are_told_by_the_one_to_mend(changes, pointer):
    (mistake,) = mistakes(changes)
    assert (mistake.pointer, mistake.code) == (pointer, "invalid-value")


def test_every_mistake_is_named():
    found = mistakes({"steps": 0, "seed": "x", "norm": {"kind": "group", "num_groups": 0, "momentum": 0.1}})
    assert [mistake.pointer for mistake in found] == ["/norm/num_groups", "/norm/momentum", "/steps", "/seed"]


@pytest.mark.parametrize("family", MENU)
def test_every_part_of_the_menu_names_its_own_fields(family):
    for part in MENU[family]:
        must_be_given = {name: "mine" for name, field in part.model_fields.items() if field.is_required()}
        sent = {"kind": kind_of(part), "no_such_knob": 1} | must_be_given
        (mistake,) = mistakes({family: [sent] if family == "probes" else sent})
        assert mistake.pointer == f"/{family}/{'0/' if family == 'probes' else ''}no_such_knob"
        assert mistake.detail == (
            f"{family} {kind_of(part)} has no field no_such_knob; it has {', '.join(part.model_fields)}"
        )


def test_a_parameter_is_named_as_it_stands_in_the_request():
    errors = [
        {"type": "int_parsing", "loc": ("query", "limit"), "msg": "Input should be a valid integer", "input": "x"},
        {"type": "extra_forbidden", "loc": ("query", "stat"), "msg": "Extra inputs are not permitted", "input": "x"},
        {"type": "less_than_equal", "loc": ("query", "limit"), "msg": "Input should be less than 9", "input": "10"},
    ]
    assert [(mistake.parameter, mistake.code, mistake.detail) for mistake in mistakes_in(errors)] == [
        ("limit", "wrong-type", 'limit must be an integer, got "x"'),
        ("stat", "unknown-parameter", "there is no parameter stat"),
        ("limit", "less-than-equal", 'limit must be less than 9, got "10"'),
    ]
