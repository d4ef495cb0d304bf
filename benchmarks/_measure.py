"""Ratios of times and peaks of memory, taken within one run: this machine may be slower in the next minute."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median


def seconds(function: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def ratio(ours: Callable[[], object], theirs: Callable[[], object], budget: float = 4.0, least: int = 7) -> float:
    """Median time of ours over median time of theirs, called in turn for about budget seconds, at least so often each."""
    ours(), theirs()  # compile, touch memory
    pairs: list[tuple[float, float]] = []
    end = time.perf_counter() + budget
    while len(pairs) < least or time.perf_counter() < end:
        pairs.append((seconds(ours), seconds(theirs)))
    return median(a for a, _ in pairs) / median(b for _, b in pairs)


# ru_maxrss starts from what the parent process held when it forked, so Linux is asked for the peak of this program alone.
PEAK = """
import sys
from pathlib import Path
if sys.platform == "linux":
    lines = Path("/proc/self/status").read_text().splitlines()
    print(next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**10)
else:
    import resource
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
"""


def peak_mib(code: str) -> float:
    """Peak resident memory of a fresh interpreter that runs the code, MiB (Linux and macOS)."""
    done = subprocess.run([sys.executable, "-c", code + PEAK], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])
