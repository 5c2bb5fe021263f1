"""One's own images, in folders and in parquet files: what is read, how it is cut, and what is refused."""

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from numpy.typing import NDArray
from PIL import Image

from normcore.data.folders import DataFolders
from normcore.data.image_set import fitted
from normcore.data.imagefolder import ImageFolder
from normcore.data.measure import measured
from normcore.data.parquet import Parquet
from normcore.menu.own_datasets import RESIDENT_BYTES, ImageFolderSpec
from normcore.refusal import Refusal
from normcore.spec import JobSpec

SIZE = 8
RNG = np.random.default_rng(0)


def png(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def pictures(count: int) -> NDArray[np.uint8]:
    return RNG.integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)


@pytest.fixture
def folders(tmp_path) -> DataFolders:
    return DataFolders(tmp_path / "data", tmp_path / "cache", hub=False)


def write_folder(home: Path, images: NDArray[np.uint8], classes: tuple[str, ...] = ("cat", "dog")) -> None:
    """Image k is of class k mod the number of classes, and named after k."""
    for number, pixels in enumerate(images):
        folder = home / classes[number % len(classes)]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:03}.png").write_bytes(png(pixels))


def write_parquet(file: Path, images: NDArray[np.uint8], labels: Any, *, plain: bool = False) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    cells = [png(pixels) if plain else {"bytes": png(pixels), "path": None} for pixels in images]
    pyarrow.parquet.write_table(pa.table({"image": cells, "label": labels}), file, row_group_size=3)


def job(data: dict[str, Any], **changes: Any) -> JobSpec:
    return JobSpec.model_validate({"model": {"kind": "mlp"}, "data": data, "batch_size": 2} | changes)


def test_folders_are_classes_in_the_order_of_their_names(folders):
    train, test = pictures(6), pictures(4)
    write_folder(folders.data_dir / "pets/train", train)
    write_folder(folders.data_dir / "pets/test", test)
    arrays = ImageFolder(path="pets", size=SIZE).arrays(folders)
    order = [0, 2, 4, 1, 3, 5]
    np.testing.assert_array_equal(arrays.train_inputs, train[order].transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(arrays.train_labels, [0, 0, 0, 1, 1, 1])
    np.testing.assert_array_equal(arrays.test_inputs, test[[0, 2, 1, 3]].transpose(0, 3, 1, 2))


@pytest.mark.parametrize("plain", [False, True])
def test_parquet_is_read_by_its_columns_from_files_of_both_splits(folders, plain):
    train, test = pictures(7), pictures(3)
    home = folders.data_dir / "own"
    write_parquet(home / "data/train-0.parquet", train[:4], [1, 3, 1, 3], plain=plain)
    write_parquet(home / "data/train-1.parquet", train[4:], [1, 3, 1], plain=plain)
    write_parquet(home / "data/test-0.parquet", test, [3, 1, 3], plain=plain)
    arrays = Parquet(path="own", size=SIZE).arrays(folders)
    np.testing.assert_array_equal(arrays.train_inputs, train.transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(arrays.test_inputs, test.transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(arrays.train_labels, [0, 1, 0, 1, 0, 1, 0])
    np.testing.assert_array_equal(arrays.test_labels, [1, 0, 1])


def test_a_share_is_held_out_by_the_split_seed_where_there_is_no_test_set(folders):
    images = pictures(20)
    write_parquet(folders.data_dir / "one.parquet", images, ["a", "b"] * 10)
    write_folder(folders.data_dir / "pets/train", images)
    for part, path in ((Parquet, "one.parquet"), (ImageFolder, "pets")):
        splits = [part(path=path, size=SIZE, test_share=0.25, split_seed=seed).arrays(folders) for seed in (0, 0, 1)]
        assert [(len(split.train_labels), len(split.test_labels)) for split in splits] == [(15, 5)] * 3
        together = np.concatenate([splits[0].train_inputs, splits[0].test_inputs])
        assert {image.tobytes() for image in together} == {
            image.tobytes() for image in images.transpose(0, 3, 1, 2).copy()
        }
        np.testing.assert_array_equal(splits[0].test_inputs, splits[1].test_inputs)
        assert not np.array_equal(splits[0].test_inputs, splits[2].test_inputs)


def test_images_are_resized_by_the_shorter_side_and_cut_out_of_the_middle():
    stripes = np.zeros((10, 30, 3), dtype=np.uint8)
    stripes[:, 10:20] = 255
    assert (fitted(Image.fromarray(stripes), 10) == 255).all()
    half = fitted(Image.fromarray(stripes), 5)
    assert half.shape == (3, 5, 5)
    assert (half[:, :, 2] == 255).all()
    assert fitted(Image.fromarray(stripes[:, :, 0]), 10).shape == (1, 10, 10)


def test_grey_images_and_colour_become_what_channels_says(folders):
    write_folder(folders.data_dir / "pets/train", pictures(4))
    grey = ImageFolder(path="pets", size=SIZE, channels=1).arrays(folders)
    assert grey.train_inputs.shape == (3, 1, SIZE, SIZE)


def test_decoding_is_done_once_and_anew_for_another_size(folders):
    write_folder(folders.data_dir / "pets/train", pictures(4))
    for size in (8, 8, 16):
        ImageFolder(path="pets", size=size).arrays(folders)
    assert len(list(folders.cache_dir.iterdir())) == 2


def test_an_image_that_cannot_be_read_is_named(folders):
    write_folder(folders.data_dir / "pets/train", pictures(4))
    (folders.data_dir / "pets/train/cat/bad.png").write_bytes(b"no image")
    sentence = r"got pets/train/cat/bad.png, which has no format that is known; mend it or take it out"
    with pytest.raises(Refusal, match=sentence) as no:
        ImageFolder(path="pets", size=SIZE, test_share=0.2, split_seed=1).arrays(folders)
    assert no.value.code == "unreadable-image"
    assert not list(folders.cache_dir.glob("*"))
    whole = png(pictures(1)[0])
    (folders.data_dir / "pets/train/cat/bad.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(Refusal, match=r"bad.png, which says: [^<]*; mend it or take it out"):
        ImageFolder(path="pets", size=SIZE, test_share=0.2, split_seed=1).arrays(folders)


@pytest.mark.parametrize("path", ["/etc", "../data", "pets/../../x", "a\0b", "leaves", "leaves/deeper"])
def test_a_path_that_leaves_the_data_folder_is_refused(folders, tmp_path, path):
    (tmp_path / "elsewhere" / "deeper").mkdir(parents=True)
    folders.data_dir.mkdir()
    (folders.data_dir / "leaves").symlink_to(tmp_path / "elsewhere")
    for kind in ("imagefolder", "parquet"):
        with pytest.raises(Refusal, match=r"a path must stay below the data folder, got ") as no:
            measured(job({"kind": kind, "path": path}), folders)
        assert no.value.code == "outside-data-folder"


@pytest.mark.parametrize("link", ["train", "train/owl", "train/cat/secret.png"])
def test_a_link_below_the_path_that_leaves_the_data_folder_is_refused(folders, tmp_path, link):
    write_folder(tmp_path / "elsewhere" / "train", pictures(4))
    place = folders.data_dir / "pets" / link
    if link == "train":
        place.parent.mkdir(parents=True)
        place.symlink_to(tmp_path / "elsewhere" / "train")
    else:
        write_folder(folders.data_dir / "pets/train", pictures(4))
        target = "train/cat" if link == "train/owl" else "train/cat/000.png"
        place.symlink_to(tmp_path / "elsewhere" / target)
    with pytest.raises(Refusal, match=rf"got 'pets/{link}'"):
        measured(job({"kind": "imagefolder", "path": "pets"}), folders)


def test_links_within_the_data_folder_are_followed(folders):
    write_folder(folders.data_dir / "store/train", pictures(4))
    (folders.data_dir / "pets").symlink_to(folders.data_dir / "store")
    assert measured(job({"kind": "imagefolder", "path": "pets"}), folders).data.num_train == 3


@pytest.mark.parametrize(
    ("classes", "sentence"),
    [
        ((), "found no folder train"),
        (("cat",), "found 1 with a .png or .jpg"),
        (("cat", "dog"), "found owl in the test"),
    ],
)
def test_folders_that_are_no_dataset_are_refused(folders, classes, sentence):
    (folders.data_dir / "pets").mkdir(parents=True)
    if classes:
        write_folder(folders.data_dir / "pets/train", pictures(4), classes)
        write_folder(folders.data_dir / "pets/test", pictures(4), ("cat", "owl"))
    with pytest.raises(Refusal, match=sentence) as no:
        measured(job({"kind": "imagefolder", "path": "pets"}), folders)
    assert no.value.code == "dataset-layout"


@pytest.mark.parametrize(
    ("knobs", "code", "sentence"),
    [
        ({"image": "picture"}, "no-image-column", "must have a column 'picture', got the columns image, label"),
        ({"image": "label"}, "no-image-column", "must hold encoded images as bytes, got int64 in 'label'"),
        ({"label": "kind"}, "no-label-column", "must have a column 'kind'"),
        ({"label": "image"}, "no-label-column", "labels must be whole numbers or words, got struct"),
    ],
)
def test_columns_that_are_not_there_or_hold_something_else_are_refused(folders, knobs, code, sentence):
    write_parquet(folders.data_dir / "a.parquet", pictures(4), [0, 1, 0, 1])
    with pytest.raises(Refusal, match=sentence) as no:
        measured(job({"kind": "parquet", "path": "a.parquet"} | knobs), folders)
    assert no.value.code == code


def test_labels_that_the_training_set_does_not_have_are_refused(folders):
    write_parquet(folders.data_dir / "own/train.parquet", pictures(4), [0, 1, 0, None])
    with pytest.raises(Refusal, match="got 1 training rows"):
        measured(job({"kind": "parquet", "path": "own"}), folders)
    write_parquet(folders.data_dir / "own/train.parquet", pictures(4), [0, 1, 0, 1])
    write_parquet(folders.data_dir / "own/test.parquet", pictures(2), [0, 2])
    with pytest.raises(Refusal, match="got 1 test rows"):
        measured(job({"kind": "parquet", "path": "own"}), folders)


@pytest.mark.parametrize("other", ["train-1", "test"])
def test_labels_are_numbers_in_all_files_or_words_in_all(folders, other):
    write_parquet(folders.data_dir / "own/train-0.parquet", pictures(4), [0, 1, 0, 1])
    write_parquet(folders.data_dir / f"own/{other}.parquet", pictures(2), ["cat", "dog"])
    with pytest.raises(Refusal, match="whole numbers in all files or words in all"):
        measured(job({"kind": "parquet", "path": "own"}), folders)


@pytest.mark.parametrize("other", ["train-1", "test"])
def test_labels_may_be_of_other_widths_in_other_files(folders, other):
    write_parquet(folders.data_dir / "own/train-0.parquet", pictures(4), pa.array([0, 1, 0, 1], pa.int8()))
    write_parquet(folders.data_dir / f"own/{other}.parquet", pictures(2), pa.array([0, 1], pa.int64()))
    assert measured(job({"kind": "parquet", "path": "own"}), folders).data.num_classes == 2
    write_parquet(folders.data_dir / f"own/{other}.parquet", pictures(2), pa.array([0, 2**63], pa.uint64()))
    with pytest.raises(Refusal, match="64 bits"):
        measured(job({"kind": "parquet", "path": "own"}), folders)


def test_measuring_fills_in_what_an_order_leaves_out_and_reads_no_image(folders):
    write_folder(folders.data_dir / "pets/train", pictures(20))
    (folders.data_dir / "pets/train/cat/bad.png").write_bytes(b"not read")
    order = job({"kind": "imagefolder", "path": "pets", "test_share": 0.3}, epochs=3)
    with pytest.raises(Refusal, match="must be counted before") as no:
        order.num_steps  # noqa: B018
    assert no.value.code == "not-measured"
    spec = measured(order, folders)
    assert (spec.data.num_train, spec.data.num_test, spec.data.num_classes) == (15, 6, 2)
    assert (spec.steps_per_epoch, spec.num_steps) == (7, 21)
    arrays = ImageFolder(path="pets", test_share=0.3)
    write_folder(folders.data_dir / "pets/train", pictures(0))
    (folders.data_dir / "pets/train/cat/bad.png").write_bytes(png(pictures(1)[0]))
    assert len(arrays.arrays(folders).train_labels) == 15
    assert measured(job({"kind": "digits"})) == job({"kind": "digits"})


@pytest.mark.parametrize("kind", ["imagefolder", "parquet"])
def test_of_what_is_left_after_the_test_set_a_share_is_held_out_for_validation(folders, kind):
    images = pictures(40)
    write_folder(folders.data_dir / "imagefolder/train", images)
    write_parquet(folders.data_dir / "parquet/all.parquet", images, [0, 1] * 20)
    knobs = {"test_share": 0.25, "validation": 0.2}
    spec = measured(job({"kind": kind, "path": kind, "size": SIZE} | knobs), folders)
    assert (spec.data.num_train, spec.data.num_validation, spec.data.num_test) == (24, 6, 10)
    assert spec.steps_per_epoch == 12
    assert measured(spec, folders) is spec
    with pytest.raises(Refusal, match="classes_per_batch may be at most the number of classes, got 3 of 2"):
        measured(job({"kind": kind, "path": kind, "classes_per_batch": 3}), folders)


def test_a_measured_job_is_refused_once_its_files_have_changed(folders):
    write_folder(folders.data_dir / "pets/train", pictures(20))
    spec = measured(job({"kind": "imagefolder", "path": "pets"}), folders)
    assert measured(spec, folders) is spec
    os.utime(folders.data_dir / "pets/train/cat/000.png", (0, 0))
    assert measured(spec, folders) is spec
    (folders.data_dir / "pets/train/cat/000.png").unlink()
    with pytest.raises(Refusal, match=r"which had num_train 18, fingerprint \w+, got num_train 17, ") as no:
        measured(spec, folders)
    assert no.value.code == "dataset-changed"


def test_what_comes_too_late_for_so_few_images_is_refused(folders):
    write_folder(folders.data_dir / "pets/train", pictures(20))
    order = job({"kind": "imagefolder", "path": "pets"}, epochs=1, schedule={"kind": "constant", "warmup_steps": 10})
    with pytest.raises(Refusal, match=r"with 18 training images: warmup_steps is 10, and the job has 9 steps") as no:
        measured(order, folders)
    assert no.value.code == "steps-do-not-fit"


def test_large_datasets_are_streamed_unless_asked_otherwise():
    images = RESIDENT_BYTES // (3 * 32**2)
    counts = {"num_test": 1, "num_classes": 2}
    assert not ImageFolderSpec(path="x", num_train=images - 2, **counts).streamed
    assert ImageFolderSpec(path="x", num_train=images + 1, **counts).streamed
    assert not ImageFolderSpec(path="x", num_train=images + 1, resident=True, **counts).streamed
    assert ImageFolderSpec(path="x", num_train=3, resident=False, **counts).streamed
