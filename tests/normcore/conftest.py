"""What the tests of the science share."""

import sys

import pytest
import torch

from normcore.data.folders import DataFolders


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> DataFolders:
    """An empty data folder, no hub, and a cache that all tests share."""
    root = tmp_path_factory.mktemp("datasets")
    return DataFolders(data_dir=root / "data", cache_dir=root / "cache", hub=False)


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """The tensors here are small: a second thread would cost more in waiting than it computes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _nothing_compiled_by_others():
    """Each test compiles on its own: the compiler refuses the ninth graph of one function in a process."""
    yield
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
