"""Peak memory."""

from pathlib import Path

import pytest
import torch

from normcore.memory import peak_mib

STATUS = Path("/proc/self/status")


@pytest.mark.skipif(not STATUS.exists(), reason="only Linux tells a process's peak memory in a file")
def test_on_the_cpu_it_is_the_largest_resident_size_that_the_system_saw():
    peak = peak_mib(torch.device("cpu"))
    high_water_kib = next(int(line.split()[1]) for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
    assert peak == pytest.approx(high_water_kib / 1024, rel=0.01)


def test_the_peak_does_not_fall():
    block = torch.ones(2**20)
    before = peak_mib(torch.device("cpu"))
    del block
    assert peak_mib(torch.device("cpu")) >= before
