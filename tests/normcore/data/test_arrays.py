import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from normcore.data.arrays import Arrays, cached


def arrays(value: int = 0) -> Arrays:
    images, labels = np.full((3, 1, 2, 2), value, np.uint8), np.arange(3)
    return Arrays(images, labels, images[:2], labels[:2])


def never() -> Arrays:
    raise AssertionError("made again")


def test_arrays_are_made_once_and_then_read(tmp_path):
    folder = tmp_path / "a" / "b"
    made = cached(folder, lambda: arrays(7))
    read = cached(folder, never)
    for name in Arrays.__slots__:
        np.testing.assert_array_equal(getattr(read, name), getattr(made, name))
        assert getattr(read, name).dtype == getattr(made, name).dtype


def test_a_failure_leaves_nothing_behind(tmp_path):
    with pytest.raises(AssertionError, match="made again"):
        cached(tmp_path / "a", never)
    broken = Arrays(*(["not an array", None, None, None]))
    object.__setattr__(broken, "train_labels", _Unsavable())
    with pytest.raises(RuntimeError, match="cannot be saved"):
        cached(tmp_path / "a", lambda: broken)
    assert not list(tmp_path.iterdir())
    assert cached(tmp_path / "a", arrays).train_inputs.shape == (3, 1, 2, 2)


class _Unsavable:
    def __array__(self, *_: object, **__: object) -> None:
        raise RuntimeError("cannot be saved")


def test_two_that_race_both_get_their_arrays(tmp_path):
    folder, both_found_no_folder = tmp_path / "a", threading.Barrier(2, timeout=30)

    def race(value: int) -> int:
        def make() -> Arrays:
            both_found_no_folder.wait()
            return arrays(value)

        return int(cached(folder, make).train_inputs[0, 0, 0, 0])

    with ThreadPoolExecutor(2) as racers:
        assert set(racers.map(race, (1, 2))) == {1, 2}
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert cached(folder, never).train_inputs[0, 0, 0, 0] in {1, 2}


def test_a_folder_that_cannot_be_written_is_an_error_with_its_cause(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="file"):
        cached(tmp_path / "file" / "a", arrays)
