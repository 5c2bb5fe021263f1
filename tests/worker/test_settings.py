"""Settings as files of environment variables give them."""

from __future__ import annotations

import pytest

from worker.settings import Settings


def test_a_variable_without_a_value_is_a_setting_that_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"NORMCORE_{name.upper()}" for name in Settings.model_fields]
    for name in names:
        monkeypatch.delenv(name, raising=False)
    unset = Settings()
    for name in names:
        monkeypatch.setenv(name, "")
    assert Settings() == unset
