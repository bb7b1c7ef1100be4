"""The same seed is the same run, whatever the hash seed of the process: identical ledgers, byte for byte."""

from __future__ import annotations

import os
import subprocess
import sys

SCRIPT = """
from orchestra.testing.world.world import run
for seed in range(12):
    result = run(seed)
    print(seed, result.log_hash, result.steps, result.virtual_ms)
"""


def test_the_hash_seed_changes_nothing() -> None:
    outputs = []
    for number in ("1", "2", "3"):
        environment = {**os.environ, "PYTHONHASHSEED": number}
        done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True, timeout=100)
        outputs.append(done.stdout)
    assert outputs[0]
    assert outputs[0] == outputs[1] == outputs[2]
