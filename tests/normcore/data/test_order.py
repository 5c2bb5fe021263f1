from normcore.data.order import shuffled


def test_an_epoch_holds_every_sample_at_most_once_in_whole_batches():
    order = shuffled(23, 5, seed=0, epoch=0)
    assert order.shape == (4, 5)
    assert len(set(order.flatten().tolist())) == 20
    assert set(order.flatten().tolist()) <= set(range(23))


def test_epochs_and_seeds_have_orders_of_their_own():
    drawn = {tuple(shuffled(23, 5, seed=s, epoch=e).flatten().tolist()) for s in range(3) for e in range(3)}
    assert len(drawn) == 9
