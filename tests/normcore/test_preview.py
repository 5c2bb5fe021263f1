from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
import torch

from normcore.build import build_model
from normcore.cost import flops_per_step
from normcore.data.folders import DataFolders
from normcore.data.shaped import shaped
from normcore.menu.spec import MAX_PARAMETERS
from normcore.preview import POINTERS, preview
from normcore.rehearsal import memory_mib
from normcore.spec import JobSpec

VGG = {"kind": "vgg", "width": 0.25}
MLP = {"kind": "mlp", "hidden": [64, 32]}


def job(**parts: Any) -> JobSpec:
    return JobSpec.model_validate({"model": VGG, "data": {"kind": "digits"}} | parts)


def reasons(folders: DataFolders | None = None, **parts: Any) -> list[tuple[str, str, str | None, str]]:
    found = preview(job(**parts), folders).reasons
    return [(reason.code, reason.pointer, reason.layer, reason.detail) for reason in found]


def test_a_job_that_can_be_built_has_sizes_and_no_reasons():
    spec = job(epochs=3, batch_size=100)
    seen = preview(spec)
    assert seen.reasons == ()
    assert seen.num_parameters == sum(p.numel() for p in build_model(spec).parameters())
    assert seen.flops_per_step == flops_per_step(
        build_model(spec, device="meta"), shaped(spec.data, 100, torch.float32)
    )
    assert seen.memory_mib == round(memory_mib(spec), 1)
    assert (seen.num_steps, seen.steps_per_epoch) == (42, 14)


TRANSFORMER = {"kind": "transformer", "depth": 1, "width": 32}
TOKENS = {"kind": "digits", "arrange": "tokens"}
ROWS = {"kind": "digits", "arrange": "rows", "size": 8}

REFUSED: dict[str, tuple[dict[str, Any], str, str | None, str]] = {
    "no-such-layer": (
        {
            "model": {"kind": "mlp", "hidden": [8]},
            "probes": [{"kind": "covariate_shift", "layers": ["blocks.0.linear", "blocks.1"]}],
        },
        "/probes",
        None,
        "layers must be paths of modules with weights, got 'blocks.1'; this model has blocks.0.linear, classifier",
    ),
    "heads-do-not-divide": (
        {"model": TRANSFORMER | {"heads": 5}, "data": TOKENS},
        "/model/heads",
        None,
        "heads must divide width, got heads 5 and width 32; take a divisor of 32, such as 4",
    ),
    "patch-does-not-divide": (
        {"model": TRANSFORMER | {"patch": 5}},
        "/model/patch",
        None,
        "patch must divide the sides of the image, got patch 5 and 32x32 pixels; take a divisor of both, such as 4",
    ),
    "no-activation-after-norm": (
        {"model": TRANSFORMER, "norm": {"kind": "filter_response"}},
        "/norm/kind",
        "blocks.0.attention.site.norm",
        (
            "FilterResponseNorm holds its own non-linearity and takes the place of a relu that follows it, got a "
            "transformer, where linear maps and additions follow the norms; take a norm without a non-linearity, such "
            "as layer_channels"
        ),
    ),
    "norm-takes-no-mask": (
        {"model": TRANSFORMER, "data": TOKENS, "norm": {"kind": "instance"}},
        "/norm/kind",
        "blocks.0.attention.site.norm",
        (
            "on padded data a norm must leave padding out of its statistics, got InstanceNorm, which mixes tokens of a "
            "sample and takes no mask; take batch, group, layer or power, which take one, or layer_channels, rms or "
            "dyt, which look at each token by itself"
        ),
    ),
    "norm-not-in-cell": (
        {"model": {"kind": "lstm"}, "data": ROWS, "norm": {"kind": "rms"}},
        "/norm/kind",
        "lstm.cell",
        (
            "an LSTM has its norms inside its cell, and there are cells with none, batch and layer (or layer_channels, "
            "which is the same there), got RmsNorm; take one of the three"
        ),
    ),
    "norm-not-affine": (
        {"model": {"kind": "lstm"}, "data": ROWS, "norm": {"kind": "layer", "affine": False}},
        "/norm/affine",
        "lstm.cell",
        "the norms of a cell learn their scales, got LayerNorm with affine false; set affine to true",
    ),
    "weights-in-cell": (
        {"model": {"kind": "lstm"}, "data": ROWS, "weight": {"kind": "spectral"}},
        "/weight/kind",
        "lstm.cell",
        (
            "a weight method works on linear maps and convolutions, got the cell of an LSTM, which uses the same "
            "weights at every time step; take weight none, or another model"
        ),
    ),
    "maps-not-in-sequence": (
        {"model": TRANSFORMER, "data": TOKENS, "weight": {"kind": "fixup"}},
        "/weight/kind",
        "blocks.0.attention.inner.qkv",
        (
            "fixup puts a number before each map and each activation, and can where they stand in a sequence, got a "
            "map in SelfAttention; take another weight method, or a resnet"
        ),
    ),
    "model-takes-other-data": (
        {"data": {"kind": "gaussian"}},
        "/data/kind",
        None,
        (
            "a model must take what the data is, got model vgg for images and data gaussian of vectors; "
            "take other data or another model"
        ),
    ),
    "layers-are-square": (
        {"model": {"kind": "deep_linear", "width": 8}, "data": {"kind": "gaussian"}},
        "/model/width",
        None,
        (
            "every layer is square, so that width must be the size of vectors and of targets, got width 8, vectors of "
            "10 and targets of 10; set width to the data's size"
        ),
    ),
    "no-activation-to-replace": (
        {
            "model": {"kind": "deep_linear"},
            "data": {"kind": "gaussian"},
            "norm": {"kind": "evonorm_s0", "num_groups": 2},
        },
        "/norm/kind",
        "blocks.0.norm",
        (
            "a deep linear net has no activations, got EvoNormS0, which holds its own non-linearity in the place of "
            "one; take a norm without"
        ),
    ),
    "no-branches": (
        {"model": {"kind": "plain", "depth": 8}, "weight": {"kind": "fixup"}},
        "/weight/kind",
        "blocks.0",
        (
            "fixup starts residual branches at zero, so that there must be some, got a plain net, which has none; take "
            "the resnet of the same depth, or another weight method"
        ),
    ),
    "groups-do-not-divide": (
        {"norm": {"kind": "group"}},
        "/norm/num_groups",
        "blocks.0.norm",
        (
            "num_groups must divide num_features, got num_groups 32 and num_features 16; "
            "take a divisor of 16, such as 16"
        ),
    ),
    "channels-per-group-do-not-divide": (
        {"norm": {"kind": "whitening", "channels_per_group": 32}},
        "/norm/channels_per_group",
        "blocks.0.norm",
        (
            "channels_per_group must divide num_features, got channels_per_group 32 and num_features 16; "
            "take a divisor of 16, such as 16, or set divisibility to nearest"
        ),
    ),
    "too-few-values-to-whiten": (
        {"model": MLP, "norm": {"kind": "whitening"}, "batch_size": 16},
        "/norm/channels_per_group",
        "blocks.0.norm",
        (
            "whitening needs more values of a channel than a group has channels, in training, got 16 values (samples "
            "times pixels) and 16 channels in a group; take fewer channels_per_group, or a larger batch"
        ),
    ),
    "one-value-group": (
        {"model": MLP, "norm": {"kind": "group"}},
        "/norm/num_groups",
        "blocks.1.norm",
        (
            "group norm needs more than one value in a group, got 32 channels of one pixel in num_groups 32; "
            "take fewer groups"
        ),
    ),
    "one-pixel-map": (
        {"model": MLP, "norm": {"kind": "instance"}},
        "/norm/kind",
        "blocks.0.norm",
        (
            "instance norm needs more than one pixel in a map, got 1; "
            "take layer or group norm, which look at several channels, or larger maps"
        ),
    ),
    "more-ranks-than-samples": (
        {"norm": {"kind": "sync", "virtual_ranks": 16}, "batch_size": 8},
        "/norm/virtual_ranks",
        "blocks.0.norm",
        (
            "each virtual rank needs a sample, got virtual_ranks 16 and a batch of 8 samples; "
            "lower virtual_ranks, or take a larger batch"
        ),
    ),
    "one-value-virtual-batch": (
        {"model": MLP, "norm": {"kind": "ghost", "virtual_batch_size": 1}},
        "/norm/virtual_batch_size",
        "blocks.0.norm",
        (
            "a virtual batch needs more than one value of a channel, got virtual_batch_size 1 on maps of 1 pixel; "
            "take a larger virtual_batch_size"
        ),
    ),
    "virtual-batch-does-not-divide": (
        {"norm": {"kind": "ghost"}, "batch_size": 100},
        "/norm/virtual_batch_size",
        "blocks.0.norm",
        (
            "virtual_batch_size must divide the batch, got virtual_batch_size 32 and a batch of 100 samples; "
            "take a divisor of 100, such as 25, or drop a last batch that is smaller than the others"
        ),
    ),
    "one-value-layer": (
        {"model": {"kind": "mlp", "hidden": [5, 1]}, "norm": {"kind": "layer"}},
        "/norm/kind",
        "blocks.1.norm",
        "layer norm needs more than one value in a sample, got 1 channel of 1 pixel; take more channels",
    ),
    "batch-of-one": (
        {"batch_size": 1},
        "/batch_size",
        "blocks.0.norm",
        (
            "batch norm needs a batch of at least 2 samples in training, got 1; "
            "take a larger batch, or a norm without batch statistics: group, layer or instance"
        ),
    ),
    "even-window": (
        {"norm": {"kind": "divisive", "variance_window": 4}},
        "/norm",
        "blocks.0.norm",
        "variance_window must be odd, so that a pixel stands in the middle of its window, got 4; take 3 or 5",
    ),
    "fan-in-of-one": (
        {"model": {"kind": "mlp", "hidden": [1, 8]}, "weight": {"kind": "standardized"}},
        "/weight/kind",
        "blocks.1.linear",
        (
            "weight standardization needs more than one weight in an output unit, got a weight of shape (8, 1); "
            "take wider layers or another weight method"
        ),
    ),
    "image-too-small": (
        {"data": {"kind": "digits", "size": 16}},
        "/data/size",
        None,
        "five poolings need an image of at least 32x32 pixels, got 16x16; set data.size to 32, or take the mlp",
    ),
    "activation-after-sum": (
        {"model": {"kind": "resnet", "depth": 8}, "norm": {"kind": "filter_response"}},
        "/model/activation_placement",
        "blocks.0.branch.1.norm",
        (
            "FilterResponseNorm holds its own non-linearity and takes the place of a relu that follows it, got "
            "activation_placement post, where an addition stands between them; take pre, or a norm without a "
            "non-linearity"
        ),
    ),
    "norm-after-zero": (
        {"model": {"kind": "resnet", "depth": 8}, "weight": {"kind": "fixup"}},
        "/norm/kind",
        "blocks.0.branch.1.norm",
        (
            "fixup starts the last map of a branch at zero, so that no norm may follow it, got BatchNorm; "
            "take norm none, or activation_placement pre"
        ),
    ),
    "norm-activates": (
        {"model": VGG | {"activation": "tanh"}, "norm": {"kind": "filter_response"}},
        "/model/activation",
        None,
        (
            "FilterResponseNorm holds its own non-linearity and takes the place of a relu that follows it, got "
            "activation tanh with norm_placement before; take relu and before, or a norm without a non-linearity"
        ),
    ),
    "batch-larger-than-data": (
        {"batch_size": 1438},
        "/batch_size",
        None,
        (
            "a batch must fit into the training set, got batch_size 1438 and 1437 training samples; "
            "set batch_size to at most 1437"
        ),
    ),
    "muon-without-matrices": (
        {"optimizer": {"kind": "muon"}},
        "/optimizer/kind",
        None,
        (
            "muon updates matrices between hidden layers, so that there must be some, got a model whose parameters "
            "beside the classifier are convolutions and vectors; take adamw or sgd, or an mlp or a transformer"
        ),
    ),
    "too-many-parameters": (
        {"model": {"kind": "mlp", "hidden": [31000, 31000]}},
        "/model",
        "blocks.1.linear",
        "a model may have at most 500,000,000 parameters, got 993,240,010; make it narrower",
    ),
}
"""By code: parts of a job, and the place, the layer and the sentence of its refusal."""


@pytest.mark.parametrize("code", REFUSED)
def test_what_cannot_be_built_is_refused_with_place_layer_both_values_and_remedy(code):
    parts, pointer, layer, detail = REFUSED[code]
    assert reasons(**parts) == [(code, pointer, layer, detail)]


COUNTED = {"num_train": 9, "num_test": 1, "num_classes": 2, "fingerprint": "0" * 16}

REFUSED_FILES: dict[str, tuple[dict[str, Any], str, str]] = {
    "dataset-changed": ({"path": "pets"} | COUNTED, "/data", "put them back, or order a new job"),
    "dataset-layout": ({"path": "."}, "/data/path", "found no folder train in '.'"),
    "no-image-column": (
        {"kind": "parquet", "path": "own.parquet", "image": "picture"},
        "/data/image",
        "must have a column 'picture', got the columns image, label",
    ),
    "no-label-column": (
        {"kind": "parquet", "path": "own.parquet", "label": "class"},
        "/data/label",
        "must have a column 'class', got the columns image, label",
    ),
    "outside-data-folder": ({"path": "../pets"}, "/data/path", "must stay below the data folder, got '../pets'"),
    "path-not-found": ({"path": "pests"}, "/data/path", "something at path 'pests' in the data folder, found nothing"),
    "steps-do-not-fit": ({"path": "pets"}, "/epochs", "warmup_steps is 100, and the job has 4 steps"),
}
"""By code: one's own data, and the place and a part of the sentence of its refusal."""


@pytest.mark.parametrize("code", REFUSED_FILES)
def test_files_that_are_no_dataset_are_refused_with_their_place(code, tmp_path):
    for number in range(9):
        (tmp_path / f"pets/train/{number % 2}").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"pets/train/{number % 2}/{number}.png").touch()
    pa.parquet.write_table(pa.table({"image": [b"", b""], "label": [0, 1]}), tmp_path / "own.parquet")
    data, pointer, part = REFUSED_FILES[code]
    late = {"epochs": 1, "schedule": {"kind": "constant", "warmup_steps": 100}} if code == "steps-do-not-fit" else {}
    seen = preview(
        job(data={"kind": "imagefolder"} | data, batch_size=2, **late), DataFolders(tmp_path, tmp_path, hub=False)
    )
    ((found, place, detail),) = [(reason.code, reason.pointer, reason.detail) for reason in seen.reasons]
    assert (found, place) == (code, pointer)
    assert part in detail
    assert (seen.num_parameters, seen.num_steps) == (0, 0)


def test_a_preview_holds_the_job_with_the_sizes_of_its_files(tmp_path):
    for number in range(9):
        (tmp_path / f"pets/train/{number % 2}").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"pets/train/{number % 2}/{number}.png").touch()
    order = job(data={"kind": "imagefolder", "path": "pets"}, epochs=2, batch_size=2)
    seen = preview(order, DataFolders(tmp_path, tmp_path, hub=False))
    assert seen.reasons == ()
    assert (seen.num_steps, seen.steps_per_epoch, seen.spec.data.num_train) == (8, 4, 8)
    assert seen.spec == JobSpec.model_validate_json(seen.spec.model_dump_json())


TIMM = {"no-such-net", "norm-not-exchanged", "timm-not-installed"}
"""What only nets of timm are refused with; see models/test_timm.py."""


def test_every_code_has_its_case():
    assert REFUSED.keys() | REFUSED_FILES.keys() | TIMM | {"dataset-not-found"} == POINTERS.keys()


def test_a_dataset_that_is_not_there_is_refused_with_its_place(tmp_path):
    ((code, pointer, layer, detail),) = reasons(DataFolders(tmp_path, tmp_path, hub=False), data={"kind": "cifar10"})
    assert (code, pointer, layer) == ("dataset-not-found", "/data/kind", None)
    assert detail.startswith(f"cifar10 needs parquet files in {tmp_path}/uoft-cs/cifar10, found none")
    assert detail.endswith("put uoft-cs/cifar10 there or set NORMCORE_DATA_DIR")


def test_every_reason_is_told_at_once_each_said_once():
    found = reasons(
        model=VGG | {"depth": 19, "width": 0.3},
        data={"kind": "digits", "size": 8},
        norm={"kind": "group"},
        batch_size=5000,
    )
    assert [(code, layer) for code, _, layer, _ in found] == [
        ("batch-larger-than-data", None),
        ("image-too-small", None),
        *(("groups-do-not-divide", f"blocks.{index}.norm") for index in (0, 2, 4, 8)),
    ]
    assert [detail.rpartition("such as ")[2] for *_, detail in found[2:]] == ["19", "19", "11", "22"]


def test_the_limit_on_parameters_is_inclusive_and_counts_the_norms():
    def mlp(width: int, norm: str) -> JobSpec:
        return job(model={"kind": "mlp", "hidden": [width]}, norm={"kind": norm})

    # 1024 w + w + 10 w + 10, and 2 w more for a norm.
    width = (MAX_PARAMETERS - 10) // 1035
    assert preview(mlp(width, "none")).reasons == ()
    assert [reason.code for reason in preview(mlp(width, "batch")).reasons] == ["too-many-parameters"]


@pytest.mark.parametrize(
    "model",
    [{"kind": "mlp", "hidden": [1_000_000] * 8}, {"kind": "vgg", "depth": 19, "width": 64}],
    ids=["mlp", "vgg"],
)
def test_absurd_widths_are_refused_without_being_tried(model):
    (reason,) = preview(job(model=model, noise={"kind": "santurkar"})).reasons
    assert reason.code == "too-many-parameters"


def test_norms_are_tried_on_the_micro_batches_that_they_will_see():
    assert reasons(model=MLP, batch_size=8, accumulation=4) == []
    ((code, *_),) = reasons(model=MLP, batch_size=8, accumulation=8)
    assert code == "batch-of-one"


def test_sync_norm_may_have_one_sample_on_each_of_several_devices():
    parts = {"norm": {"kind": "sync"}, "batch_size": 2}
    assert preview(job(**parts, devices=2)).reasons == ()
    assert preview(job(**parts, accumulation=2)).reasons[0].code == "batch-of-one"
    assert preview(job(norm={"kind": "batch"}, batch_size=2, devices=2)).reasons[0].code == "batch-of-one"


def test_where_a_norm_does_not_fit_the_numbers_are_those_without_it():
    refused, plain = preview(job(norm={"kind": "group"})), preview(job(norm={"kind": "none"}))
    assert refused.reasons
    assert (refused.num_parameters, refused.flops_per_step) == (plain.num_parameters, plain.flops_per_step)
    assert refused.memory_mib == plain.memory_mib


def test_where_no_model_fits_the_numbers_are_zero():
    seen = preview(job(data={"kind": "digits", "size": 8}))
    assert (seen.num_parameters, seen.flops_per_step, seen.memory_mib) == (0, 0, 0)
    assert (seen.num_steps, seen.steps_per_epoch) == (1000, 11)


def test_neither_the_global_generator_nor_the_folders_are_touched(tmp_path):
    before = torch.get_rng_state()
    preview(job(noise={"kind": "santurkar"}), DataFolders(tmp_path / "data", tmp_path / "cache", hub=False))
    assert torch.equal(torch.get_rng_state(), before)
    assert not list(tmp_path.iterdir())


def test_every_code_that_a_part_can_refuse_with_has_its_place_in_the_spec():
    import normcore

    # What a notebook calls and no job is made of.
    beside_jobs = {"attention", "certificate", "recurrent", "statistics", "surgery"}
    root = Path(normcore.__path__[0])
    paths = [path.relative_to(root) for path in root.rglob("*.py")]
    sources = [(root / path).read_text() for path in paths if path.parts[0] not in beside_jobs]
    raised = {
        text.split('"')[1] for source in sources for text in source.split("Refusal(")[1:] if text.strip()[0] == '"'
    }
    # Refusals that no preview can meet: a model is built with the right channels and no masks, data is not read, a
    # spec has kinds and knobs that exist, and devices are a worker's.
    unmet = {code for code in raised if code.startswith("mask-")}
    unmet |= {"not-measured", "too-few-devices", "unreadable-image"}
    unmet |= {"channels-differ", "dataset-incomplete", "no-such-knob", "no-such-norm"}
    assert raised - unmet <= POINTERS.keys()
    assert len(raised) > 5
