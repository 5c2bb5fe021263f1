import pytest

from worker import oom


@pytest.mark.parametrize(
    ("content", "kills"),
    [("low 0\nhigh 0\nmax 7\noom 3\noom_kill 2\noom_group_kill 1\n", 2), ("low 0\n", 0), ("", 0), ("oom_kill\n", 0)],
)
def test_the_kernels_kills_are_counted(tmp_path, monkeypatch, content, kills):
    monkeypatch.setattr(oom, "MEMORY_EVENTS", tmp_path / "memory.events")
    assert oom.oom_kills() == 0
    (tmp_path / "memory.events").write_text(content)
    assert oom.oom_kills() == kills
