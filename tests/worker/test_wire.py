import math

import pytest

from normcore.records import Diverged, Finished, Metrics, Point, Stopped
from worker.wire import Failed, Kept, Made, Order, Ready, decode, encode

MESSAGES = [
    Ready("cuda:0", {"torch": "2.13", "host": "a"}),
    Metrics(3, (Point("train/loss", 2, 0.1), Point("train/loss", 3, 1e-300))),
    Metrics(0, ()),
    Kept(500, "/srv/jobs/a\n1", "ab" * 32, 2**40, last=True),
    Kept(20, "/srv/jobs/a1", "ab" * 32, 1, last=False, best=True),
    Made(3, "figures/landscape.png", "/tmp/landscape.png"),
    Diverged(4, math.inf, None),
    Stopped(5),
    Finished(6),
    Failed("exception", 'two\nlines and "quotes" \u2028'),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_is_one_line_and_comes_back_the_same(message):
    line = encode(message)
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert decode(line) == message


def test_a_loss_that_is_no_number_comes_back_as_one():
    diverged = decode(encode(Diverged(4, math.nan, "blocks.1")))
    assert isinstance(diverged, Diverged)
    assert math.isnan(diverged.loss)


def test_an_order_is_one_line_and_comes_back_the_same():
    order = Order(
        '{"seed": 0}',
        "/srv/a1",
        None,
        "/srv/data",
        "/srv/cache",
        hub=False,
        others={"one": "/srv/one/a1/step_00000009"},
    )
    assert order.line().count(b"\n") == 1
    assert Order.of(order.line()) == order
