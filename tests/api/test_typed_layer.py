import pytest
import torch
from torch import nn

from api.typed_layer import typed_layer
from normcore.norms.group import GroupNorm
from normcore.refusal import Refusal

MINE = """
from torch import nn
import torch

class MyNorm(nn.BatchNorm2d):
    def __init__(self, num_features, scale=1.0):
        super().__init__(num_features)
        self.scale = scale

def made(num_features):
    return nn.GroupNorm(2, num_features)

def text(num_features):
    return "norm"

def fails(num_features):
    raise KeyError("width")
"""


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    """A directory with modules in it, of a name that no other test has imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    (tmp_path / "typed_mine.py").write_text(MINE)
    (tmp_path / "typed_broken.py").write_text("import torch\n\nwidth = 1 / 0\n")
    (tmp_path / "typed_wanting.py").write_text("import there_is_no_such_package\n")
    (tmp_path / "typed_unreadable.py").write_text("def norm(:\n")


def test_a_kind_of_the_menu_with_its_knobs():
    layer = typed_layer("group", ["num_groups=2", "affine=false"], 6)
    assert isinstance(layer, GroupNorm)
    assert (layer.num_features, layer.num_groups, layer.affine) == (6, 2, False)


def test_a_kind_without_channels_takes_the_fewest_that_suit_its_knobs():
    assert typed_layer("group").num_features == 32
    assert typed_layer("batch").num_features == 8


def test_a_class_or_a_function_of_the_current_directory():
    layer = typed_layer("typed_mine:MyNorm", ["scale=0.5"], 6)
    assert (type(layer).__name__, layer.num_features, layer.scale) == ("MyNorm", 6, 0.5)
    assert typed_layer("typed_mine:made").num_channels == 8


def test_a_class_whose_first_argument_is_given_or_has_a_default():
    assert isinstance(typed_layer("torch.nn:GroupNorm", ["num_groups=2", "num_channels=8"]), nn.GroupNorm)
    assert isinstance(typed_layer("torch.nn:ReLU"), nn.ReLU)


def test_leaves_default_random_numbers_alone():
    seed = torch.get_rng_state()
    typed_layer("batch")
    assert torch.equal(torch.get_rng_state(), seed)


@pytest.mark.parametrize(
    ("name", "words", "sentence"),
    [
        ("bach", [], 'no norm of kind "bach"; on offer: none, batch, .*; or module:Class for a layer of your own$'),
        ("group", ["num_groups=3"], "num_groups must divide num_features, got num_groups 3 and num_features 8"),
        ("group", ["groups=3"], "group cannot be had so: groups: extra inputs .*; its knobs: num_groups, .*, affine"),
        ("group", ["num_groups"], "an argument is given as name=value, such as num_groups=2, got 'num_groups'"),
        (":MyNorm", [], "named as module:Class, such as mine:MyNorm, got ':MyNorm'"),
        ("typed_mine:", [], "named as module:Class, such as mine:MyNorm, got 'typed_mine:'"),
        ("typed_nowhere:MyNorm", [], "there is no module typed_nowhere, neither in .* nor among what is installed"),
        ("typed_nowhere.deep:MyNorm", [], "there is no module typed_nowhere.deep, neither in"),
        ("typed_mine:YourNorm", [], "typed_mine has no YourNorm; its layers: MyNorm"),
        ("typed_mine:MyNorm", ["width=3"], r"made with num_features=8, width=3: TypeError: .*'width'"),
        ("typed_mine:text", [], "typed_mine:text must make a torch.nn.Module, got str"),
        ("typed_mine:fails", [], r"made with num_features=8: KeyError: 'width' \(typed_mine.py, line 17\)"),
        ("typed_mine:torch", [], "typed_mine:torch cannot be made with nothing: TypeError: "),
        (
            "typed_broken:MyNorm",
            [],
            r"cannot be imported: ZeroDivisionError: division by zero \(typed_broken.py, line 3",
        ),
        (
            "typed_wanting:MyNorm",
            [],
            "typed_wanting cannot be imported: ModuleNotFoundError: .*there_is_no_such_package",
        ),
        ("typed_unreadable:MyNorm", [], r"cannot be imported: SyntaxError: .*\(typed_unreadable.py, line 1\)$"),
    ],
)
def test_what_makes_no_layer_is_one_sentence(name, words, sentence):
    with pytest.raises(Refusal, match=sentence) as refused:
        typed_layer(name, words)
    assert "\n" not in str(refused.value)
