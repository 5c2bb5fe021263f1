"""A training that really runs out of memory, and what its person reads."""

import json
import re
import resource
import subprocess
import sys

import pytest

from worker.exits import Exit

RUN = """
import json, resource, sys
from pathlib import Path
from worker.trainer import carry_out, warm_up
from worker.wire import Order

order = Order(**json.loads(sys.argv[1]))
warm_up("cpu", Path(order.cache_dir))
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 200 * 2**20,) * 2)
said = []
code = carry_out(order, "cpu", said.append, lambda: False)
print(json.dumps([int(code), said[-1].code, said[-1].detail]))
"""


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_AS") or sys.platform != "linux", reason="needs Linux' limits")
def test_a_training_without_enough_memory_says_what_would_fit_and_what_that_does_to_the_norm(tmp_path):
    spec = {"model": {"kind": "vgg", "width": 0.5}, "data": {"kind": "digits"}, "batch_size": 1024, "steps": 3}
    order = {"spec": json.dumps(spec), "folder": str(tmp_path), "resume": None, "hub": False}
    order |= {"data_dir": str(tmp_path / "data"), "cache_dir": str(tmp_path / "cache")}
    ran = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps(order)], capture_output=True, text=True, timeout=120, check=False
    )
    code, word, detail = json.loads(ran.stdout.splitlines()[-1])
    assert (code, word) == (Exit.OUT_OF_MEMORY, "out-of-memory")
    found = re.search(r"the estimate is ([\d,]+) MiB of ([\d,]+) MiB.* a batch_size of (\d+) would fit", detail)
    assert found, detail
    assert int(found[3]) < 1024
    assert f"MiB): batch norm would then take its statistics over {found[3]} samples instead of 1024; or " in detail
    assert re.search(r"or accumulation \d+ with the batch_size as it is .* move \d+ times an update$", detail), detail
