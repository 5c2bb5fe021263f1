"""A layer as it is typed: a kind of the menu, or `mine:MyNorm` for a class in the current directory."""

from __future__ import annotations

import importlib
import inspect
import json
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from normcore.certificate.shelf import shelf_layer
from normcore.refusal import Refusal

NUM_FEATURES = 8


def typed_layer(name: str, words: Sequence[str] = (), num_features: int | None = None) -> nn.Module:
    """The layer that is meant by a kind of the menu, or by `module:Class`, with modules of the current directory too.

    Args:
        name: The kind, or module and class.
        words: `name=value` for its arguments; a value is JSON where it is JSON, else text.
        num_features: Channels, for the first argument where `words` leave it open; 8 when not given.

    Raises:
        Refusal: There is no such kind, module, class or argument, or what is there makes no layer.

    Example:
        >>> typed_layer("torch.nn:GroupNorm", ["num_groups=2", "num_channels=8"]).num_groups
        2
    """
    arguments = dict(_argument(word) for word in words)
    if ":" in name:
        layer = _made(name, _found(name), arguments, num_features or NUM_FEATURES)
        if not isinstance(layer, nn.Module):
            raise Refusal("no-layer", f"{name} must make a torch.nn.Module, got {type(layer).__name__}; name the class")
        return layer
    try:
        return shelf_layer(name, num_features, **arguments)
    except Refusal as refusal:
        if refusal.code == "no-such-norm":
            raise Refusal(refusal.code, f"{refusal}; or module:Class for a layer of your own") from refusal
        raise


def _argument(word: str) -> tuple[str, Any]:
    name, equals, text = word.partition("=")
    if not equals or not name:
        raise Refusal("no-argument", f"an argument is given as name=value, such as num_groups=2, got {word!r}")
    try:
        return name, json.loads(text)
    except ValueError:
        return name, text


def _found(name: str) -> Any:
    path, _, attribute = name.partition(":")
    if not path or not attribute:
        raise Refusal("no-layer", f"a layer of your own is named as module:Class, such as mine:MyNorm, got {name!r}")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(path)
    except (Exception, SystemExit) as error:
        # One that the module itself wants is missing in it; `a.b` is missing also where `a` is.
        if isinstance(error, ModuleNotFoundError) and f"{path}.".startswith(f"{error.name}."):
            sentence = f"there is no module {path}, neither in {here} nor among what is installed; look at its name"
            raise Refusal("no-layer", sentence) from error
        raise Refusal("no-layer", f"{path} cannot be imported: {_last(error)}") from error
    if not hasattr(module, attribute):
        layers = [
            key for key, value in vars(module).items() if isinstance(value, type) and issubclass(value, nn.Module)
        ]
        raise Refusal("no-layer", f"{path} has no {attribute}; its layers: {', '.join(layers) or 'none'}")
    return getattr(module, attribute)


def _made(name: str, maker: Callable[..., Any], arguments: dict[str, Any], num_features: int) -> Any:
    given = dict(arguments)
    try:
        first = next(iter(inspect.signature(maker).parameters.values()), None)
        if first is not None and first.default is inspect.Parameter.empty:
            given = {first.name: num_features, **arguments}
        return maker(**given)
    except (Exception, SystemExit) as error:
        words = ", ".join(f"{key}={value!r}" for key, value in given.items()) or "nothing"
        raise Refusal("no-layer", f"{name} cannot be made with {words}: {_last(error)}") from error


def _last(error: BaseException) -> str:
    """An error in one line, with the place where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    # A syntax error says its place itself.
    place = "" if isinstance(error, SyntaxError) else f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})"
    return f"{type(error).__name__}: {' '.join(str(error).split())}{place}"
