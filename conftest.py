"""For tests and doctests alike: the same random numbers, whatever ran before."""

from __future__ import annotations

import sys

import pytest


@pytest.fixture(autouse=True)
def _seeded() -> None:
    # Not imported for it: the tests of the menu and of the order book do without torch.
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


def pytest_addoption(parser: pytest.Parser) -> None:
    """What a person may ask for beside what is tested every time."""
    parser.addoption(
        "--whole-walk",
        action="store_true",
        help="every model x norm x weight method x precision (tests/normcore/test_walk.py)",
    )
