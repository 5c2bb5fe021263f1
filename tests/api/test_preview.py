from normcore.data.folders import DataFolders
from normcore.preview import preview
from normcore.spec import JobSpec


def test_a_preview_tells_size_and_cost_and_stores_nothing(client, book, settings, order):
    answer = client.post("/v1/jobs/preview", json=order)
    assert answer.status_code == 200
    spec = JobSpec.model_validate(order)
    expected = preview(spec, DataFolders(settings.data_dir, settings.state_dir / "cache", hub=False))
    assert answer.json() == {
        "name": "mlp128x128 batch bs128 lr0.1 seed0",
        "spec": spec.model_dump(mode="json"),
        "num_parameters": expected.num_parameters,
        "flops_per_step": expected.flops_per_step,
        "memory_mib": expected.memory_mib,
        "num_steps": 100,
        "steps_per_epoch": 11,
    }
    assert book.jobs().items == ()


def test_a_preview_counts_what_can_be_counted_by_hand(client, order):
    body = {**order, "model": {"kind": "mlp", "hidden": [16]}}
    linear, norm, classifier = 64 * 16 + 16, 2 * 16, 16 * 10 + 10
    assert client.post("/v1/jobs/preview", json=body).json()["num_parameters"] == linear + norm + classifier
