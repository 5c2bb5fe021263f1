"""Forward hooks, which torch keeps in private dictionaries."""

from __future__ import annotations

from torch import nn

FORWARD = ("_forward_hooks", "_forward_pre_hooks")
BACKWARD = ("_backward_hooks", "_backward_pre_hooks")


def count_hooks(module: nn.Module) -> int:
    """Hooks that run when the module does, forwards or backwards.

    Example:
        >>> layer = nn.ReLU()
        >>> _ = layer.register_forward_hook(print)
        >>> count_hooks(layer)
        1
    """
    return sum(len(vars(module)[name]) for name in (*FORWARD, *BACKWARD))


def take_hooks_away(module: nn.Module) -> None:
    """No hook of the module and of those inside it runs any more."""
    for inner in module.modules():
        for name in (*FORWARD, *BACKWARD):
            vars(inner)[name].clear()
