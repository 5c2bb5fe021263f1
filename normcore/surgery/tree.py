"""Modules exchanged in a model, and put back."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from torch.nn.parameter import is_lazy

from normcore.refusal import Refusal


@dataclass(frozen=True, slots=True)
class Exchange:
    """A module that gave its place to another."""

    parent: nn.Module | None
    """None where it was the whole model."""
    name: str
    was: nn.Module


def refuse_lazy(model: nn.Module) -> None:
    """Layers without sizes cannot be copied, and would be drawn anew in the copy.

    Raises:
        Refusal: There is one.
    """
    for path, module in model.named_modules():
        if any(is_lazy(tensor) for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False))):
            raise Refusal(
                "model-is-lazy",
                f"every layer must have its sizes, got {path or 'the model'}, whose "
                f"sizes are unknown until it has seen a batch; run the model once before",
            )


class Tree:
    """A model whose modules are exchanged one by one, so that every exchange can be taken back.

    Example:
        >>> tree = Tree(nn.Sequential(nn.ReLU()))
        >>> tree.exchange("0", nn.Tanh())
        >>> tree.model
        Sequential(
          (0): Tanh()
        )
        >>> put_back(tree.model, tree.exchanges)
        Sequential(
          (0): ReLU()
        )
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.exchanges: list[Exchange] = []

    def exchange(self, path: str, module: nn.Module) -> None:
        """Puts `module` in the place of the one at `path`, and wherever else that one stands."""
        was = self.model.get_submodule(path)
        if path == "":
            self.exchanges.append(Exchange(None, "", was))
            self.model = module
            return
        for place, child in list(self.model.named_modules(remove_duplicate=False)):
            if child is was:
                above, _, name = place.rpartition(".")
                parent = self.model.get_submodule(above)
                self.exchanges.append(Exchange(parent, name, was))
                setattr(parent, name, module)


def put_back(model: nn.Module, exchanges: list[Exchange] | tuple[Exchange, ...]) -> nn.Module:
    """The model with every exchange undone, the last one first; it is changed in place, and returned.

    What comes back is in the mode, training or evaluation, of what it takes its place back from.
    """
    for exchange in reversed(exchanges):
        if exchange.parent is None:
            model = exchange.was.train(model.training)
        else:
            mode = exchange.parent.get_submodule(exchange.name).training
            setattr(exchange.parent, exchange.name, exchange.was.train(mode))
    return model
