import errno

import pytest
import torch
from pydantic import ValidationError

from normcore.companions import RankLost
from normcore.data.folders import DatasetNotFound
from normcore.spec import JobSpec
from worker.checkpoint import CorruptCheckpoint
from worker.exits import Exit
from worker.failures import MAX_CHARACTERS, MAX_LINES, failure_of


@pytest.mark.parametrize(
    ("error", "code", "word"),
    [
        (DatasetNotFound("put it there"), Exit.SPEC, "dataset-not-found"),
        (MemoryError(), Exit.OUT_OF_MEMORY, "out-of-memory"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), Exit.OUT_OF_MEMORY, "out-of-memory"),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), Exit.DEVICE, "device-error"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), Exit.DEVICE, "device-error"),
        (RankLost("got SIGKILL in rank 1 of 2"), Exit.DEVICE, "rank-lost"),
        (CorruptCheckpoint("torn"), Exit.IO, "corrupt-checkpoint"),
        (OSError(errno.ENOSPC, "No space left on device"), Exit.IO, "io-error"),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), Exit.EXCEPTION, "exception"),
    ],
)
def test_whose_fault_an_exception_is(error, code, word):
    found, failed = failure_of(error)
    assert (found, failed.code) == (code, word)
    assert failed.detail


def test_torch_running_out_of_the_hosts_memory_is_out_of_memory():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    code, failed = failure_of(caught.value)
    assert (code, failed.code) == (Exit.OUT_OF_MEMORY, "out-of-memory")
    assert failed.detail.endswith("lower batch_size or width")


def test_a_spec_that_this_version_does_not_know_is_the_specs_fault():
    with pytest.raises(ValidationError) as caught:
        JobSpec.model_validate_json('{"model": {"kind": "perceptron"}, "data": {"kind": "digits"}}')
    code, failed = failure_of(caught.value)
    assert (code, failed.code) == (Exit.SPEC, "spec")
    assert failed.detail.startswith("the worker cannot read the spec:")


def test_only_the_last_lines_are_told():
    text = "\n".join(f"line {number}" for number in range(1000))
    detail = failure_of(ValueError(text))[1].detail
    assert detail.endswith("line 999")
    assert len(detail.splitlines()) == MAX_LINES
    assert len(failure_of(ValueError("x" * 10_000))[1].detail) == MAX_CHARACTERS
