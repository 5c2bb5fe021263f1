"""A checkpoint on disk: written whole or not at all, verified when read, and free of pickle.

```
step_00000500/
    model.safetensors      the model's parameters and buffers, by their names in the model
    training.safetensors   the rest of the snapshot: optimizer, random streams, readings
    state.json             step, facts, the model's sha256, size and sha256 of both files, and of this text itself
```
`save` and `load` bring torch; `verify` reads the files only, so that the worker can choose a checkpoint without torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normcore.records import Snapshot

if TYPE_CHECKING:
    from torch import Tensor

MODEL, TRAINING, STATE = "model.safetensors", "training.safetensors", "state.json"
FILES = (MODEL, TRAINING, STATE)
"""The files of a checkpoint; the last one is written last and vouches for the others."""

_PREFIX = "model."
_CHUNK = 1 << 20


class CorruptCheckpoint(Exception):
    """A checkpoint that is torn, altered or gone: it must not be trained from."""


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint that stands on disk."""

    path: Path
    step: int
    sha256: str
    """Of the model's tensors, sorted by name: equal weights, equal hash, whatever else was trained with them."""
    bytes: int
    """Of all its files."""


def folder_name(step: int) -> str:
    """The name of a checkpoint's folder, sorted as its steps are.

    Example:
        >>> folder_name(500)
        'step_00000500'
    """
    return f"step_{step:08d}"


def save(folder: Path, snapshot: Snapshot) -> Saved:
    """Write a snapshot to `folder/step_<step>` and return what stands there.

    The files are written and flushed to the disk in a temporary folder, which is then renamed: whoever sees the name
    sees all of it. A step that stands already is left as it is, since an attempt reaches a step once.

    Example:
        >>> import torch
        >>> snapshot = Snapshot(step=3, tensors={"model.weight": torch.ones(2, 2)}, facts={"seed": 0})
        >>> saved = save(Path(tempfile.mkdtemp()), snapshot)
        >>> saved.path.name, load(saved.path).facts
        ('step_00000003', {'seed': 0})
    """
    from safetensors.torch import save_file

    path = folder / folder_name(snapshot.step)
    if path.exists():
        return verify(path)
    model = {name.removeprefix(_PREFIX): t for name, t in snapshot.tensors.items() if name.startswith(_PREFIX)}
    training = {name: tensor for name, tensor in snapshot.tensors.items() if not name.startswith(_PREFIX)}
    folder.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=folder))
    try:
        for name, tensors in ((MODEL, model), (TRAINING, training)):
            save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, partial / name)
        state = {
            "step": snapshot.step,
            "sha256": sha256_of(model),
            "files": {name: _seal(partial / name) for name in (MODEL, TRAINING)},
            "facts": dict(snapshot.facts),
        }
        (partial / STATE).write_text(_sealed_text(state), encoding="utf-8")
        for name in FILES:
            _flush(partial / name)
        _flush(partial)
        partial.rename(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    _flush(folder)
    return Saved(path, snapshot.step, str(state["sha256"]), sum((path / name).stat().st_size for name in FILES))


def verify(path: Path) -> Saved:
    """Read every byte of a checkpoint and compare it with what was written. Needs no torch.

    Raises:
        CorruptCheckpoint: if a file is missing, torn or altered; the message names it.
    """
    state = _read_state(path)
    total = (path / STATE).stat().st_size
    for name in (MODEL, TRAINING):
        try:
            found = _seal(path / name)
        except OSError as error:
            raise CorruptCheckpoint(f"checkpoint {path.name} has no readable {name}: {error.strerror}") from None
        if found != state["files"][name]:
            raise CorruptCheckpoint(
                f"checkpoint {path.name}: {name} was written with {state['files'][name]['bytes']} bytes, sha256 "
                f"{state['files'][name]['sha256'][:12]}, and holds {found['bytes']}, {found['sha256'][:12]}; "
                "go on from the checkpoint before"
            )
        total += int(found["bytes"])
    return Saved(path, int(state["step"]), str(state["sha256"]), total)


def load(path: Path) -> Snapshot:
    """Verify a checkpoint and read it into CPU tensors.

    Raises:
        CorruptCheckpoint: if a file is missing, torn or altered.
    """
    from safetensors.torch import load_file

    saved = verify(path)
    model = load_file(path / MODEL)
    tensors = {_PREFIX + name: tensor for name, tensor in model.items()} | load_file(path / TRAINING)
    return Snapshot(step=saved.step, tensors=tensors, facts=_read_state(path)["facts"])


def weights(path: Path) -> dict[str, Tensor]:
    """Verify a checkpoint and read its model's parameters and buffers, by their names, into CPU tensors.

    Raises:
        CorruptCheckpoint: if a file is missing, torn or altered.
    """
    from safetensors.torch import load_file

    verify(path)
    return load_file(path / MODEL)


def sha256_of(tensors: Mapping[str, Tensor]) -> str:
    """The hash of tensors: of each name, dtype, shape and bytes, in the order of the names.

    Example:
        >>> import torch
        >>> a, b = torch.zeros(2), torch.ones(3)
        >>> sha256_of({"a": a, "b": b}) == sha256_of({"b": b.clone(), "a": a.clone()})
        True
    """
    import torch

    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _read_state(path: Path) -> dict[str, Any]:
    """The verified content of `state.json`."""
    try:
        text = (path / STATE).read_text(encoding="utf-8")
        state = json.loads(text)
        seal = state.pop("seal")
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise CorruptCheckpoint(f"checkpoint {path.name} has no readable {STATE}: {error}") from None
    # Compared as text: an altered byte that parses to the same value is an altered byte all the same.
    if _sealed_text(state) != text:
        raise CorruptCheckpoint(
            f"checkpoint {path.name}: {STATE} does not match its own seal {str(seal)[:12]}; "
            "go on from the checkpoint before"
        )
    return dict(state)


def _sealed_text(state: Mapping[str, Any]) -> str:
    seal = hashlib.sha256(json.dumps(state, sort_keys=True, allow_nan=False).encode()).hexdigest()
    return json.dumps({**state, "seal": seal}, sort_keys=True, allow_nan=False, indent=1) + "\n"


def _seal(path: Path) -> dict[str, Any]:
    """Size and sha256 of a file."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return {"bytes": size, "sha256": digest.hexdigest()}


def _flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
