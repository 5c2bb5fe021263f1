"""An order of a job over two processes, carried out by a worker's trainer."""

import pytest

from normcore.records import Finished, Metrics, Remark
from normcore.refusal import Refusal
from normcore.spec import JobSpec
from worker.exits import Exit
from worker.training import run
from worker.wire import Kept, Order

SPEC = JobSpec.model_validate(
    {"model": {"kind": "mlp"}, "data": {"kind": "digits", "size": 8}, "batch_size_per_device": 8, "devices": 2}
    | {"steps": 2}
)


def order(folder, devices):
    places = {"folder": str(folder / "a1"), "data_dir": str(folder), "cache_dir": str(folder)}
    return Order(SPEC.model_dump_json(), resume=None, hub=False, devices=devices, **places)


def test_a_job_of_two_devices_is_trained_and_says_whose_statistics_it_keeps(tmp_path):
    said = []
    assert run(order(tmp_path, 2), "cpu", said.append, lambda: False) is Exit.DONE
    assert {type(message) for message in said} == {Metrics, Remark, Kept, Finished}
    assert "statistics-of-one-device" in {message.code for message in said if isinstance(message, Remark)}


def test_a_worker_with_fewer_devices_refuses_the_job(tmp_path):
    sentence = "got devices 2 on a worker that lets a job use 1 on its CPU; .* raise the worker's NORMCORE_DEVICES"
    with pytest.raises(Refusal, match=sentence) as refused:
        run(order(tmp_path, 1), "cpu", print, lambda: False)
    assert refused.value.code == "too-few-devices"
