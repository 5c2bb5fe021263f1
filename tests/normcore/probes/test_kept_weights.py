"""The weights that a training passed through."""

import pytest
import torch

from normcore.probes.kept_weights import KeptWeights, vector


def offered(kept, steps):
    for step in steps:
        kept.offer(step, [torch.full((2,), float(step)), torch.tensor([-float(step)])])
    return kept


@pytest.mark.parametrize("room", [4, 5, 7])
@pytest.mark.parametrize("count", [1, 4, 5, 9, 40])
def test_steps_are_evenly_spread_from_the_first_and_never_more_than_there_is_room_for(room, count):
    kept = offered(KeptWeights(room), range(3, 3 + 2 * count, 2))
    gaps = {later - earlier for earlier, later in zip(kept.steps, kept.steps[1:], strict=False)}
    assert kept.steps[0] == 3
    assert len(gaps) <= 1
    assert min(count, room // 2) <= len(kept.steps) <= room
    # The newest is at most one gap away from the last that was offered.
    assert kept.steps[-1] + max(gaps, default=2) > 3 + 2 * (count - 1)
    assert [kept.vectors[i].tolist() for i in range(len(kept.steps))] == [[s, s, -s] for s in kept.steps]


def test_they_are_copies_in_the_dtype_of_the_parameters():
    parameter = torch.ones(2, dtype=torch.bfloat16)
    kept = KeptWeights(4)
    kept.offer(1, [parameter])
    parameter.zero_()
    assert kept.vectors[0].tolist() == [1, 1]
    assert kept.vectors[0].dtype == torch.bfloat16
    assert vector([parameter, torch.ones(1)]).dtype == torch.float32


@pytest.mark.parametrize("stopped", [0, 1, 4, 5, 11])
def test_going_on_from_a_state_is_as_if_nothing_had_been(stopped):
    whole = offered(KeptWeights(4), range(1, 21))
    half = offered(KeptWeights(4), range(1, stopped + 1))
    later = KeptWeights(4)
    later.restore(half.state())
    offered(later, range(stopped + 1, 21))
    assert later.steps == whole.steps
    ours, theirs = later.state(), whole.state()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
