"""A small CIFAR-10 in the folder layout of the real one, and a hub that has it."""

import http.server
import io
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import huggingface_hub.constants
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from normcore.menu.datasets import Cifar10Spec

Images = dict[str, NDArray[np.uint8]]


@pytest.fixture
def small(monkeypatch) -> None:
    """A CIFAR-10 of 40 training and 12 test images counts as complete."""
    monkeypatch.setattr(Cifar10Spec, "num_samples", 40)
    monkeypatch.setattr(Cifar10Spec, "num_test", 12)


@pytest.fixture
def write_cifar10() -> Callable[..., Images]:
    """Writes both parquet files below a folder, and returns the images `(N, C, H, W)` of each split."""

    def write(folder: Path, train: int = 40, test: int = 12) -> Images:
        features = datasets.Features(img=datasets.Image(), label=datasets.ClassLabel(num_classes=10))
        written = {}
        for split, count in (("train", train), ("test", test)):
            images = np.random.default_rng(count).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
            rows = {"img": [{"bytes": _png(image), "path": None} for image in images], "label": np.arange(count) % 10}
            file = folder / "plain_text" / f"{split}-00000-of-00001.parquet"
            file.parent.mkdir(parents=True, exist_ok=True)
            datasets.Dataset.from_dict(rows, features=features).to_parquet(file)
            written[split] = images.transpose(0, 3, 1, 2)
        return written

    return write


def _png(image: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Iterator[Path]:
    """A hub on this machine that the real client talks to; files below the folder are those of `uoft-cs/cifar10`."""
    folder = tmp_path / "hub"
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Here", (_Hub,), {"folder": folder}))
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder
    server.shutdown()
    server.server_close()


class _Hub(http.server.BaseHTTPRequestHandler):
    folder: Path
    commit = "0" * 40

    def do_GET(self) -> None:
        api, files = "/api/datasets/uoft-cs/cifar10", f"/datasets/uoft-cs/cifar10/resolve/{self.commit}/"
        found = sorted(self.folder.rglob("*.parquet"))
        names = [path.relative_to(self.folder).as_posix() for path in found]
        if self.path.startswith(f"{api}/tree/"):
            body = [
                {"type": "file", "path": name, "size": path.stat().st_size, "oid": self.commit}
                for name, path in zip(names, found, strict=True)
            ]
            self.answer(json.dumps(body).encode())
        elif self.path.startswith(api):
            siblings = [{"rfilename": name} for name in names]
            self.answer(json.dumps({"id": "uoft-cs/cifar10", "sha": self.commit, "siblings": siblings}).encode())
        else:
            self.answer((self.folder / self.path.removeprefix(files)).read_bytes())

    do_HEAD = do_GET  # noqa: N815 (the name that the server looks for)

    def answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{len(body):040d}"')
        self.send_header("X-Repo-Commit", self.commit)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass
