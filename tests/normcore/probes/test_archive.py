"""Readings written down and read again."""

from io import BytesIO
from math import inf, isnan

import numpy as np
import pytest

from normcore.probes.archive import pack, unpack
from normcore.records import Reading

READINGS = [
    Reading("activations", 1, {"a": 1.0}, {"mean": (0.0, 1.5), "var": (inf, 2.0)}, ("0", "blocks.1"), {"bn_mode": "x"}),
    Reading("activations", 5, {"b": 2.0}, {"mean": (0.5, 1.0), "var": (0.0, 4.0)}, ("0", "blocks.1"), {"bn_mode": "x"}),
    Reading("activations", 7, {}, {"mean": (0.5, 1.0), "var": (0.0, 4.0)}, ("0", "blocks.1"), {"bn_mode": "x"}),
]


def test_what_is_packed_is_unpacked():
    assert unpack(pack(READINGS)) == READINGS
    bare = [Reading("landscape", 3, {}, {})]
    assert unpack(pack(bare)) == bare


def test_numpy_alone_reads_a_row_per_reading_and_nan_where_a_scalar_is_missing():
    with np.load(BytesIO(pack(READINGS)), allow_pickle=False) as content:
        assert content["step"].tolist() == [1, 5, 7]
        assert content["mean"].shape == (3, 2)
        assert [isnan(value) for value in content["a"]] == [False, True, True]
        assert [isnan(value) for value in content["b"]] == [True, False, True]
        assert content["layers"].tolist() == ["0", "blocks.1"]


def test_equal_readings_are_equal_files_in_whatever_order_their_names_stand():
    facts = {"bn_mode": "batch", "precision": "training"}
    scalars, arrays = {"b": 1.0, "a": 2.0}, {"var": (1.0,), "mean": (0.0,)}
    ours = Reading("landscape", 1, scalars, arrays, facts=facts)
    turned = [dict(reversed(each.items())) for each in (scalars, arrays, facts)]
    assert pack([Reading("landscape", 1, *turned[:2], facts=turned[2])]) == pack([ours])


@pytest.mark.parametrize("content", [b"", b"no zip at all", pack(READINGS)[:100]])
def test_another_file_is_refused(content):
    with pytest.raises(ValueError, match="readings must be an npz that a training wrote"):
        unpack(content)


def test_another_npz_is_refused():
    other = BytesIO()
    np.savez(other, x=np.zeros(3))
    with pytest.raises(ValueError, match="readings must be an npz that a training wrote"):
        unpack(other.getvalue())
