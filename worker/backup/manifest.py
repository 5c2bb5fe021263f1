"""What a backup must hold, byte for byte, and who made it: `python -m worker.backup.manifest seal | check`.

Both read the files one after the other from standard input, so that they need no access to where they lie:

```
cat normcore.dump mlflow.dump state.tar | ... seal normcore.dump=<bytes> mlflow.dump=<bytes> state.tar=<bytes>
cat manifest.json normcore.dump mlflow.dump state.tar | ... check
```
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import BinaryIO, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from worker import schema

CHUNK = 1 << 20
LONGEST_MANIFEST = 1 << 16


class BadBackup(Exception):
    """A backup that must not be restored."""


class Part(BaseModel):
    """A file of a backup."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bytes: int
    sha256: str


class Manifest(BaseModel):
    """What a backup says of itself, in one line."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    created_at: datetime
    normcore: str
    """The version that made it."""
    mlflow: str
    """The version of MLflow whose database is in it."""
    postgres: str
    revision: str
    """Of the order book's schema."""
    artifacts: str
    """Where MLflow kept its artifacts; those of a folder are in the backup, those of a bucket are not."""
    files: dict[str, Part]


def seal(stream: BinaryIO, sizes: Mapping[str, int], *, revision: str, postgres: str, artifacts: str) -> Manifest:
    """The manifest of files that come one after the other.

    Raises:
        BadBackup: nobody could restore it, since this version does not know the order book's schema.
    """
    if revision not in schema.known():
        raise BadBackup(
            f"the order book that is backed up must have a schema that this version knows, {schema.known()[0]} to "
            f"{schema.known()[-1]}, got {revision!r}; take the backup with the version that runs"
        )
    return Manifest(
        created_at=datetime.now(UTC).replace(microsecond=0),
        normcore=version("normcore"),
        mlflow=version("mlflow"),
        postgres=postgres,
        revision=revision,
        artifacts=artifacts,
        files={name: _part(stream, size) for name, size in sizes.items()},
    )


def check(stream: BinaryIO) -> Manifest:
    """The manifest that comes first, once every file after it is what it says.

    Raises:
        BadBackup: something is missing, damaged or too much, or a later version made it; the message says which.
    """
    try:
        manifest = Manifest.model_validate_json(stream.readline(LONGEST_MANIFEST))
    except ValidationError as error:
        raise BadBackup(
            f"manifest.json must say what the backup holds, got {len(error.errors())} mistakes, such as: "
            f"{error.errors()[0]['msg']}; take another backup"
        ) from None
    if manifest.revision not in schema.known():
        raise BadBackup(
            f"the backup's order book must have a schema that this version knows, {schema.known()[0]} to "
            f"{schema.known()[-1]}, got {manifest.revision}; restore it with normcore {manifest.normcore} or later"
        )
    for name, wanted in manifest.files.items():
        found = _part(stream, wanted.bytes)
        if found != wanted:
            raise BadBackup(
                f"{name} must hold {wanted.bytes} bytes with sha256 {wanted.sha256[:12]}, got {found.bytes} with "
                f"{found.sha256[:12]}; take another backup"
            )
    if stream.read(1):
        raise BadBackup("the last file must end where the manifest says, and goes on; take another backup")
    return manifest


def _part(stream: BinaryIO, size: int) -> Part:
    digest, left = hashlib.sha256(), size
    while left and (chunk := stream.read(min(left, CHUNK))):
        digest.update(chunk)
        left -= len(chunk)
    return Part(bytes=size - left, sha256=digest.hexdigest())


def main(arguments: Sequence[str]) -> None:
    """Seal or check what comes on standard input; what was made or found on standard output."""
    what, *rest = arguments
    if what == "seal":
        facts = {name: os.environ[name.upper()] for name in ("revision", "postgres", "artifacts")}
        sizes = {name: int(size) for name, _, size in (word.partition("=") for word in rest)}
        try:
            print(seal(sys.stdin.buffer, sizes, **facts).model_dump_json())
        except BadBackup as error:
            sys.exit(str(error))
        return
    try:
        manifest = check(sys.stdin.buffer)
    except BadBackup as error:
        sys.exit(f"nothing is restored: {error}")
    where = f"not in it, but in {manifest.artifacts}" if "://" in manifest.artifacts else "in it"
    print(
        f"the backup of {manifest.created_at:%Y-%m-%d %H:%M} UTC by normcore {manifest.normcore} is whole; "
        f"schema {manifest.revision}, MLflow {manifest.mlflow}, artifacts {where}"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
