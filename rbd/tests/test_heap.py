"""rbd.suite.heap: freed memory is kept while a run lasts, and given back after it."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

MEASURE = """
import resource
import torch
from rbd.suite import heap

def count_faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(2**24)  # 64 MiB, which malloc maps by default
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20  # MiB

usual = count_faults()
with heap.keep_memory():
    count_faults()  # the first ones make room
    count_faults()
    faults = count_faults() / usual
    held = resident()
given_back = held - resident()
torch.ones(2**26)  # 256 MiB
print(faults, given_back, resident() - held)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's malloc is told to keep memory")
def test_freed_memory_is_kept_inside_and_given_back_after():
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
    faults, given_back, left = map(float, done.stdout.split())
    assert faults < 0.1
    assert given_back > 60
    assert left < 60  # later memory goes back by itself
