import io

import numpy as np

from normcore.data.folders import DataFolders
from normcore.records import Checkpoint, Reading
from normcore.snapshot import readings_of
from normcore.spec import JobSpec
from normcore.train import train
from worker.readings import Readings

SPEC = JobSpec.model_validate(
    {
        "model": {"kind": "mlp", "hidden": [4]},
        "data": {"kind": "digits", "size": 8},
        "steps": 6,
        "checkpoint_every": 3,
        "probes": [{"kind": "landscape", "every": 1, "points": 3}],
    }
)


def arrays(readings: Readings) -> dict[str, list]:
    return columns(readings.npz("landscape"))


def columns(npz: bytes) -> dict[str, list]:
    with np.load(io.BytesIO(npz), allow_pickle=False) as content:
        return {name: content[name].tolist() for name in content.files}


def test_readings_from_a_snapshot_and_after_it_are_those_of_the_whole_training(tmp_path):
    whole, resumed = Readings([]), None
    for record in train(SPEC, folders=DataFolders(cache_dir=tmp_path)):
        if isinstance(record, Reading):
            whole.add(record)
            if resumed is not None:
                resumed.add(record)
        if isinstance(record, Checkpoint) and record.step == 3:
            resumed = Readings(readings_of(record.snapshot))
    assert arrays(resumed) == arrays(whole)
    assert arrays(whole)["step"] == [1, 2, 3, 4, 5, 6]
    assert np.shape(arrays(whole)["gradient_change"]) == (6, 3)
