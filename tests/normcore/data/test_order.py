import numpy as np
import pytest
import torch

from normcore.data.order import grouped, shuffled


def test_an_epoch_holds_every_sample_at_most_once_in_whole_batches():
    order = shuffled(23, 5, seed=0, epoch=0)
    assert order.shape == (4, 5)
    assert len(set(order.flatten().tolist())) == 20
    assert set(order.flatten().tolist()) <= set(range(23))


def test_epochs_and_seeds_have_orders_of_their_own():
    drawn = {tuple(shuffled(23, 5, seed=s, epoch=e).flatten().tolist()) for s in range(3) for e in range(3)}
    assert len(drawn) == 9


@pytest.mark.parametrize(("batch_size", "classes", "each"), [(6, 2, 3), (6, 3, 2), (4, 1, 4), (12, 4, 3)])
def test_grouped_batches_hold_so_many_classes_evenly_and_every_sample_once_where_that_can_be(batch_size, classes, each):
    labels = np.random.default_rng(0).permutation(np.arange(48) % 4)
    for epoch in range(30):
        order = grouped(labels, batch_size, classes, seed=0, epoch=epoch)
        assert sorted(order.flatten().tolist()) == list(range(48))
        for batch in order.numpy():
            assert sorted(np.bincount(labels[batch], minlength=4)) == [0] * (4 - classes) + [each] * classes


def test_classes_of_unlike_size_come_out_even_where_they_can():
    # Two of four in each of six batches of six: the large class must stand in every one.
    labels = np.repeat([0, 1, 2, 3], [18, 6, 6, 6])
    for epoch in range(30):
        order = grouped(labels, 6, 2, seed=1, epoch=epoch).numpy()
        assert sorted(order.flatten().tolist()) == list(range(36))
        assert all((labels[batch] == 0).sum() == 3 for batch in order)


def test_a_class_that_has_run_out_starts_again():
    # A batch of 4 with one class of 6 samples in it: the second batch of the class takes two of them again.
    labels = np.repeat([0, 1], [6, 6])
    order = grouped(labels, 4, 1, seed=0, epoch=0).numpy()
    assert order.shape == (3, 4)
    assert all(len(set(labels[batch])) == 1 and len(set(batch.tolist())) == 4 for batch in order)
    assert len(set(order.flatten().tolist())) == 10


def test_places_that_do_not_go_into_the_classes_evenly_differ_by_one():
    labels = np.arange(70) % 7
    for batch in grouped(labels, 8, 3, seed=0, epoch=0).numpy():
        assert sorted(np.bincount(labels[batch]))[-3:] == [2, 3, 3]


def test_which_classes_meet_in_a_batch_is_drawn_and_epochs_and_seeds_differ():
    labels = np.arange(60) % 6
    epochs = [grouped(labels, 4, 2, seed=0, epoch=epoch).numpy() for epoch in range(40)]
    pairs = {tuple(sorted(set(labels[batch].tolist()))) for epoch in epochs for batch in epoch}
    assert len(pairs) == 15
    drawn = {tuple(grouped(labels, 4, 2, seed=s, epoch=e).flatten().tolist()) for s in range(3) for e in range(3)}
    assert len(drawn) == 9
    assert torch.equal(grouped(labels, 4, 2, seed=1, epoch=5), grouped(labels, 4, 2, seed=1, epoch=5))


def test_all_classes_in_every_batch_is_a_stratified_order():
    labels = np.arange(40) % 4
    assert all((np.bincount(labels[batch]) == 2).all() for batch in grouped(labels, 8, 4, seed=0, epoch=0).numpy())
