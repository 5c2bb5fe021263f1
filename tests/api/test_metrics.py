import pytest

from worker.book import MetricPoint


@pytest.fixture
def curves(client, worker, order):
    """The address of the curves of a job: two keys, whose order is not that of every database, five steps each."""
    path = client.post("/v1/jobs", json=order).headers["location"]
    token = worker.claim().token
    points = [MetricPoint(key, step, step / 4) for key in ("train/loss", "Test/x") for step in range(1, 6)]
    assert worker.book.add_metrics(token, points)
    return f"{path}/metrics"


def points(answer):
    assert answer.status_code == 200
    return [(point["key"], point["step"], point["value"]) for point in answer.json()["items"]]


TEST_X = [("Test/x", step, step / 4) for step in range(1, 6)]
TRAIN_LOSS = [("train/loss", step, step / 4) for step in range(1, 6)]


def test_every_curve_is_listed_by_key_and_step(client, curves):
    answer = client.get(curves)
    assert points(answer) == TEST_X + TRAIN_LOSS
    assert answer.json()["next"] is None
    assert answer.json()["items"][0] == {"key": "Test/x", "step": 1, "value": 0.25}


def test_one_curve_is_listed(client, curves):
    assert points(client.get(curves, params={"key": "train/loss"})) == TRAIN_LOSS


def test_a_curve_is_listed_after_a_step(client, curves):
    assert points(client.get(curves, params={"key": "train/loss", "after_step": 3})) == TRAIN_LOSS[3:]
    assert points(client.get(curves, params={"after_step": 4})) == [TEST_X[4], TRAIN_LOSS[4]]


@pytest.mark.parametrize("key", ["nothing", "train", "train/los", "%"])
def test_a_key_that_the_job_has_not_is_an_empty_list(client, curves, key):
    assert client.get(curves, params={"key": key}).json() == {"items": [], "next": None}


def test_a_job_that_has_not_begun_has_no_points(client, order):
    path = client.post("/v1/jobs", json=order).headers["location"]
    assert client.get(f"{path}/metrics").json() == {"items": [], "next": None}


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 5, 9, 10])
@pytest.mark.parametrize("asked", [{}, {"key": "train/loss"}, {"after_step": 2}])
def test_pages_hold_every_point_once(client, curves, limit, asked):
    found, cursor = [], None
    while True:
        page = client.get(curves, params={**asked, "limit": limit, **({"cursor": cursor} if cursor else {})})
        assert len(page.json()["items"]) <= limit
        found += points(page)
        cursor = page.json()["next"]
        if cursor is None:
            break
    assert found == points(client.get(curves, params=asked))


@pytest.mark.parametrize(
    ("asked", "detail"),
    [
        ({"limit": 0}, "limit must be greater than or equal to 1"),
        ({"limit": 100_001}, "limit must be less than or equal to 100000"),
        ({"after_step": -1}, "after_step must be greater than or equal to 0"),
        ({"after_step": 2**63}, "after_step must be less than or equal to 9223372036854775807"),
        ({"cursor": "x"}, "a cursor must come from a page's `next`, got 'x'; start without one"),
        ({"cursor": "5:"}, "a cursor must come from a page's `next`"),
        ({"cursor": f"{'9' * 19}:a"}, "a cursor must come from a page's `next`"),
        ({"key": "a\0"}, "key must be the name of a curve, got one with a NUL character"),
        ({"keys": "a"}, "there is no parameter keys"),
    ],
)
def test_what_cannot_be_asked_is_refused(client, curves, asked, detail):
    answer = client.get(curves, params=asked)
    assert answer.status_code == 422
    assert answer.json()["type"] == "/problems/invalid-parameter"
    assert detail in answer.json()["detail"]
