"""A streamed dataset is a resident one, bit for bit, wherever it is entered."""

import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from normcore.data import streamed
from normcore.data.arrays import Arrays
from normcore.data.dataset import Resident, load
from normcore.data.folders import DataFolders
from normcore.data.image_set import ImageSet, ImageSets
from normcore.data.measure import measured
from normcore.data.streamed import Streamed
from normcore.records import Finished, Metrics
from normcore.refusal import Refusal
from normcore.spec import JobSpec
from normcore.train import train
from tests.normcore.data.test_own_images import pictures, png, write_folder, write_parquet

N, M = 23, 5
KNOBS = {"batch_size": 5, "seed": 3, "crop_padding": 2, "flip": True}


@pytest.fixture
def sets(tmp_path) -> ImageSets:
    def images(count: int) -> ImageSet:
        files = [png(pixels) for pixels in pictures(count)]
        return ImageSet(np.arange(count), encoded=files.__getitem__, name=str, size=8, channels=3)

    return ImageSets(images(N), images(M), tmp_path / "kept")


def resident_of(sets: ImageSets) -> Resident:
    return Resident(Arrays(sets.train.all(), sets.train.labels, sets.test.all(), sets.test.labels), **KNOBS)


def assert_same(ours, theirs) -> None:
    assert torch.equal(ours.inputs, theirs.inputs)
    assert torch.equal(ours.labels, theirs.labels)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_a_resident_dataset_from_any_step_on(sets, workers):
    theirs = resident_of(sets)
    for start in (0, 6):
        ours = Streamed(sets, **KNOBS, workers=workers)
        assert (ours.steps_per_epoch, ours.num_train, ours.num_test) == (4, N, M)
        for step in range(start, start + 6):
            assert_same(ours.batch(step), theirs.batch(step))
        for mine, other in zip(ours.test_batches(2), theirs.test_batches(2), strict=True):
            assert_same(mine, other)
    assert not list(ours.validation_batches())


def test_a_step_out_of_turn_does_not_lose_the_place(sets):
    ours, theirs = Streamed(sets, **KNOBS), resident_of(sets)
    for step in (0, 0, 1, 7, 1, 0, 2, 3, 3, 9, 4, 5):
        assert_same(ours.batch(step), theirs.batch(step))


@pytest.mark.parametrize("knobs", [{"crop_padding": 2}, {"flip": True}, {}])
def test_every_augmentation_is_that_of_a_resident_dataset(sets, knobs):
    arrays = Arrays(sets.train.all(), sets.train.labels, sets.test.all(), sets.test.labels)
    same = {"batch_size": 5, "seed": 3}
    ours, theirs = Streamed(sets, **same, **knobs, workers=0), Resident(arrays, **same, **knobs)
    for step in range(6):
        assert_same(ours.batch(step), theirs.batch(step))


@pytest.mark.parametrize("kind", ["imagefolder", "parquet"])
def test_what_is_held_out_mislabelled_and_grouped_is_that_of_a_resident_dataset(tmp_path, kind):
    folders, images = DataFolders(tmp_path / "data", tmp_path / "cache", hub=False), pictures(48)
    write_folder(folders.data_dir / "imagefolder/train", images, ("a", "b", "c"))
    write_parquet(folders.data_dir / "parquet/all.parquet", images, [0, 1, 2] * 16)
    knobs = {"validation": 0.25, "split_seed": 4, "label_noise": 0.5, "classes_per_batch": 2, "flip": True}

    def loaded(resident: bool, **changes):
        data = {"kind": kind, "path": kind, "size": 8, "resident": resident} | knobs | changes
        job = {"model": {"kind": "mlp"}, "data": data, "batch_size": 6, "seed": 1}
        return load(measured(JobSpec.model_validate(job), folders), folders=folders)

    ours, theirs = loaded(resident=False), loaded(resident=True)
    assert (type(ours), type(theirs)) == (Streamed, Resident)
    assert (ours.num_train, ours.num_validation) == (theirs.num_train, theirs.num_validation) == (32, 11)
    for step in range(7):
        assert_same(ours.batch(step), theirs.batch(step))
        assert len(ours.batch(step).labels.unique()) == 2
    for mine, other in ((ours.validation_batches, theirs.validation_batches), (ours.test_batches, theirs.test_batches)):
        batches = list(mine(4))
        assert len(batches) > 1
        for one, another in zip(batches, other(4), strict=True):
            assert_same(one, another)

    # What is held out is another part with another seed, and what is normalized by is that of what is left.
    clean, shuffled = loaded(resident=False, label_noise=0.0), loaded(resident=False, split_seed=5)
    assert (ours._sets.train.labels != clean._sets.train.labels).sum() == 16
    assert_same(next(clean.validation_batches()), next(ours.validation_batches()))
    assert not torch.equal(next(shuffled.validation_batches()).inputs, next(ours.validation_batches()).inputs)
    whole = loaded(resident=False, validation=0.0)
    assert not torch.equal(whole.normalization.mean, ours.normalization.mean)


def test_reading_leaves_torchs_global_generator_alone(sets):
    before = torch.get_rng_state()
    data = Streamed(sets, **KNOBS)
    data.batch(0)
    list(data.test_batches())
    assert torch.equal(torch.get_rng_state(), before)


def test_of_many_images_mean_and_deviation_are_those_of_a_sample_and_kept(sets, monkeypatch):
    monkeypatch.setattr(streamed, "SAMPLE", 8)
    first = Streamed(sets, **KNOBS, workers=0).normalization
    exact = resident_of(sets).normalization
    assert not torch.equal(first.mean, exact.mean)
    torch.testing.assert_close(first.mean, exact.mean, rtol=0, atol=0.05)
    monkeypatch.setattr(streamed, "_counts", lambda _: pytest.fail("counted again"))
    assert torch.equal(Streamed(sets, **KNOBS, workers=0).normalization.std, first.std)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_cannot_be_read_is_refused_wherever_it_is_read(sets, workers):
    data = Streamed(sets, **KNOBS, workers=workers)
    data._sets = replace(sets, train=replace(sets.train, encoded=lambda _: b"no image"))
    with pytest.raises(Refusal, match="every image must be a png or jpg that can be read, got ") as no:
        data.batch(0)
    assert no.value.code == "unreadable-image"


@pytest.mark.parametrize("kind", ["imagefolder", "parquet"])
def test_a_streamed_training_is_the_resident_one_and_resumes(tmp_path, kind):
    folders, images = DataFolders(tmp_path / "data", tmp_path / "cache", hub=False), pictures(30)
    write_folder(folders.data_dir / "imagefolder/train", images)
    write_parquet(folders.data_dir / "parquet/all.parquet", images, [0, 1] * 15)
    job = {"model": {"kind": "mlp", "hidden": [4]}, "batch_size": 6, "steps": 7, "checkpoint_every": 3}

    def spec(resident: bool) -> JobSpec:
        data = {"kind": kind, "path": kind, "size": 8, "flip": True, "resident": resident}
        return JobSpec.model_validate(job | {"data": data, "deterministic": True})

    def losses(records) -> dict[int, float]:
        points = [point for record in records if isinstance(record, Metrics) for point in record.points]
        return {point.step: point.value for point in points if point.key == "train/loss"}

    assert isinstance(load(measured(spec(resident=False), folders), folders=folders), Streamed)
    ours, theirs = (list(train(spec(resident), folders=folders)) for resident in (False, True))
    assert losses(ours) == losses(theirs)
    assert isinstance(ours[-1], Finished)
    snapshot = next(record.snapshot for record in ours if getattr(record, "snapshot", None) is not None)
    again = list(train(spec(resident=False), folders=folders, resume=snapshot))
    assert losses(again).items() <= losses(ours).items()
    assert len(losses(again)) == 7 - snapshot.step


READER = """
import multiprocessing, threading, time
import numpy as np
from normcore.data.image_loader import read_ahead
from normcore.data.image_set import ImageSet
images = ImageSet(np.zeros(1), encoded=lambda _: time.sleep(60), name=str, size=8, channels=3)

def tell():
    time.sleep(1)
    for process in multiprocessing.active_children():
        print(process.pid, flush=True)

threading.Thread(target=tell).start()
next(read_ahead(images, [[0], [0]]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's hand is Linux' own")
def test_readers_end_with_the_process_that_asked_for_them():
    process = subprocess.Popen([sys.executable, "-c", READER], stdout=subprocess.PIPE)
    assert process.stdout is not None
    reader = int(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    until = time.monotonic() + 10
    while alive(reader) and time.monotonic() < until:
        time.sleep(0.05)
    assert not alive(reader)


def alive(pid: int) -> bool:
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
