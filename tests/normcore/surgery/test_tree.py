from torch import nn

from normcore.surgery.tree import Tree, put_back


def test_a_place_that_changed_hands_twice_goes_back_to_the_first():
    first = nn.ReLU()
    tree = Tree(nn.Sequential(first))
    tree.exchange("0", nn.Tanh())
    tree.exchange("0", nn.Sigmoid())
    assert put_back(tree.model, tree.exchanges)[0] is first


def test_a_module_that_stands_twice_is_exchanged_twice_and_put_back():
    shared = nn.ReLU()
    tree = Tree(nn.ModuleDict({"a": shared, "b": nn.Sequential(shared)}))
    tree.exchange("b.0", nn.Tanh())
    assert tree.model["a"] is tree.model["b"][0]
    model = put_back(tree.model, tree.exchanges)
    assert model["a"] is model["b"][0] is shared


def test_what_comes_back_has_the_mode_of_what_goes():
    tree = Tree(nn.Sequential(nn.Dropout()))
    tree.exchange("0", nn.Identity())
    tree.model.eval()
    assert not put_back(tree.model, tree.exchanges)[0].training


def test_the_whole_model_may_be_exchanged():
    was = nn.ReLU()
    tree = Tree(was)
    tree.exchange("", nn.Tanh())
    assert isinstance(tree.model, nn.Tanh)
    assert put_back(tree.model, tree.exchanges) is was
