"""For tests and doctests alike: the same random numbers, whatever ran before."""

from __future__ import annotations

import sys

import pytest


@pytest.fixture(autouse=True)
def _seeded() -> None:
    # Not imported for it: the tests of the menu and of the order book do without torch.
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)
