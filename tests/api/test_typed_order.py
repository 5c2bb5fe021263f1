import json
from io import BytesIO

import pytest

from api.typed_order import UnreadableOrder, read_order
from normcore.menu.occasions import BudgetSpec
from normcore.spec import JobSpec


def read(*words, stdin=""):
    return read_order(words, BytesIO(stdin.encode()))


def test_file_is_sent_as_it_stands(tmp_path):
    path = tmp_path / "job.json"
    path.write_bytes(b'{"lr": NaN,, "mistakes": "are for the API"')
    assert read(str(path)) == path.read_bytes()


def test_dash_is_standard_input():
    assert read("-", stdin='{"seed": 1}') == b'{"seed": 1}'


def test_fields_are_set_in_a_file_later_ones_last():
    order = json.loads(read("-", "seed=2", "norm.kind=group", "seed=3", stdin='{"seed": 1, "model": {"kind": "mlp"}}'))
    assert order == {"seed": 3, "model": {"kind": "mlp"}, "norm": {"kind": "group"}}


def test_values_are_json_where_they_are_json_else_text():
    typed = read("a=1", "b=1.5", "c=true", "d=null", "e=[1, 2]", 'f="1"', "g=vgg", "h=", "i=x=y", 'j={"k": 1}')
    assert json.loads(typed) == {
        "a": 1,
        "b": 1.5,
        "c": True,
        "d": None,
        "e": [1, 2],
        "f": "1",
        "g": "vgg",
        "h": "",
        "i": "x=y",
        "j": {"k": 1},
    }


def test_numbers_in_a_path_are_places_in_a_list():
    assert json.loads(read("probes.0.kind=landscape", "probes.0.every=10", "hidden.0=64", "hidden.1=32")) == {
        "probes": [{"kind": "landscape", "every": 10}],
        "hidden": [64, 32],
    }


def test_an_occasion_of_a_probe_can_be_typed():
    words = ["kind=landscape", "preset=deep_linear", "every.kind=budget", "every.fraction=0.05"]
    order = read("model.kind=mlp", "data.kind=digits", *(f"probes.0.{word}" for word in words))
    (probe,) = JobSpec.model_validate_json(order).probes
    assert (probe.every, probe.low, probe.high) == (BudgetSpec(fraction=0.05), 0.01, 30.0)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["nowhere.json"],
            r"nowhere\.json is neither a field such as .* nor a JSON file .*: no such file",
        ),
        (["a=" + "[" * 100_000], "nested less deeply"),
        (["probes=[]", "probes.²=1"], "there is no ²"),
        (["a=1", "seed"], r"a field is set as path=value, such as model\.kind=vgg, got 'seed'"),
        (["model=vgg", "model.depth=11"], r"'model\.depth=11' cannot be set: there is no depth in \"vgg\""),
        (["hidden.1=3"], r"'hidden\.1=3' cannot be set: the list has 0, so number 0 is next"),
        (["hidden=[1]", "hidden.x=3"], r"'hidden\.x=3' cannot be set: there is no x in \[1\]"),
    ],
)
def test_order_that_cannot_be_read_says_why(words, sentence):
    with pytest.raises(UnreadableOrder, match=sentence):
        read(*words)


def test_fields_cannot_be_set_in_what_is_not_json():
    with pytest.raises(UnreadableOrder, match=r"- is not JSON: Expecting .*; mend it before setting fields in it"):
        read("-", "seed=1", stdin="{seed: 1}")


def test_a_doubled_field_of_a_file_is_not_lost():
    with pytest.raises(UnreadableOrder, match="a field must stand once, got 'steps' twice"):
        read("-", "seed=1", stdin='{"steps": 1, "steps": 2}')
