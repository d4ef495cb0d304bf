"""Times, ratios of times and peaks of memory, and which cells of a grid are measured at all.

Threads that wait spin: those of OpenMP, which torch's operations leave behind, for some milliseconds. On two cores they take
one from whatever runs next, so calling two sides in strict turn measures the second one beside the idle threads of the
first (signs against stored fp32: 6.5 times interleaved, 9 to 11 apart). So every side is timed in short blocks: wait until
the process uses no processor time, make one call that is not timed, then time some. Two sides are compared block by
block, neighbours with each other, because this machine may be slower in the next minute.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

SETS = {"quick": 0.05, "default": 1.0, "slow": 120.0}  # seconds a call may be expected to take; cells beyond are n/a
SET = os.environ.get("RBD_BENCH", "default")
if SET not in SETS:
    raise ValueError(f"RBD_BENCH: got {SET!r}, allowed {', '.join(map(repr, SETS))}")
BLOCK = 0.0 if SET == "quick" else 0.08  # seconds of timed calls in a block
PAIRS = 1 if SET == "quick" else 7  # of blocks; odd, so that the median is one of them
BLOCKS = 1 if SET == "quick" else 3  # of a side that is compared with nothing
CALLS = 1 if SET == "quick" else 3  # least number of timed calls in a block, if they are short
DEVICES = ("cpu", "gpu")
ONLY = os.environ.get("RBD_BENCH_DEVICE") or None  # one of DEVICES: cells of the other are n/a
if ONLY not in (None, *DEVICES):  # else all cells would be
    raise ValueError(f"RBD_BENCH_DEVICE: got {ONLY!r}, allowed {', '.join(map(repr, DEVICES))}")
NOT_YET = ("device: no kernels for", "distribution: got 'countsketch'")  # messages of an older rbd that has none

Call = Callable[[], object]


@dataclass(frozen=True)
class Pair:
    """What two sides took, seconds a call, and the median over neighbouring blocks of ours / theirs."""

    ours: float
    theirs: float
    ratio: float


def capture(call: Call) -> Call:
    """The GPU work of a call as a CUDA graph: replaying it is one launch, whatever Python and the launches in it cost."""
    import torch

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # what is made once: gradients, tables, compiled kernels
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()

    def replay(kept: Call = call) -> None:  # its tensors have to live as long as the graph
        graph.replay()

    return replay


def settle(quiet: float = 0.005, patience: float = 0.5) -> None:
    """Wait until the threads of this process sleep: it used a tenth of one processor at most for `quiet` seconds."""
    end = time.perf_counter() + patience
    while time.perf_counter() < end:
        start, used = time.perf_counter(), time.process_time()
        time.sleep(quiet)
        if time.process_time() - used < 0.1 * (time.perf_counter() - start):
            return


def seconds(call: Call, device: str = "cpu", calls: int = 1) -> float:
    """Time of a call, by the clock on the wall, or by the GPU's own between events around so many calls."""
    if device == "cpu":
        start = time.perf_counter()
        for _ in range(calls):
            call()
        return (time.perf_counter() - start) / calls
    import torch

    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(calls):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000 / calls


def block(call: Call, device: str = "cpu", budget: float = BLOCK, least: int = CALLS) -> float:
    """Median time of a call, seconds, over a block of them after a pause and a call that is not timed."""
    if device == "cpu":
        settle()
        call()
        calls = 1
    else:
        call()
        calls = max(1, min(100, int(0.002 / max(seconds(call, device), 1e-6))))  # some 2 ms: events tick in microseconds
    times: list[float] = []
    end = time.perf_counter() + budget
    while len(times) < least and sum(times) < 1 or time.perf_counter() < end:
        times.append(seconds(call, device, calls))
    return median(times)


def alone(call: Call, device: str = "cpu", blocks: int = BLOCKS, budget: float = BLOCK) -> float:
    """Median over blocks, seconds a call; a long call is timed in one block."""
    first = block(call, device, budget)
    return median([first] + [block(call, device, budget) for _ in range(blocks - 1 if first < 0.5 else 0)])


def rounds(calls: dict[str, Call], device: str = "cpu", count: int = PAIRS, budget: float = BLOCK) -> dict[str, float]:
    """Seconds of each call, by medians over rounds: a block of every call in each, in the other order than the round before.

    All of them see the same minutes of the machine, so that their quotients are ratios.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(count):
        for name in list(calls)[:: -1 if turn % 2 else 1]:
            times[name].append(block(calls[name], device, budget))
    return {name: median(taken) for name, taken in times.items()}


def alternate(ours: Call, theirs: Call, device: str = "cpu", pairs: int = PAIRS, budget: float = BLOCK) -> Pair:
    """Blocks of both sides in turn, each pair in the other order than the one before."""
    times: list[tuple[float, float]] = []
    for pair in range(pairs):
        if pair % 2:
            b, a = block(theirs, device, budget), block(ours, device, budget)
        else:
            a, b = block(ours, device, budget), block(theirs, device, budget)
        times.append((a, b))
    return Pair(median(a for a, _ in times), median(b for _, b in times), median(a / b for a, b in times))


def interleave(ours: Call, theirs: Call, budget: float = 10 * BLOCK, least: int = CALLS) -> Pair:
    """Calls of both sides in strict turn, without pauses: what a product costs between operations of torch."""
    ours(), theirs()
    times: list[tuple[float, float]] = []
    end = time.perf_counter() + budget
    while len(times) < least or time.perf_counter() < end:
        times.append((seconds(ours), seconds(theirs)))
    a, b = median(a for a, _ in times), median(b for _, b in times)
    return Pair(a, b, a / b)


def skip_if_slow(call: float) -> None:
    """Skip a cell one call of which is expected to take longer than this set of cells allows.

    Raises:
        NotImplementedError: so asv shows n/a; its text says how to get the cell.
    """
    if call > SETS[SET]:
        wider = next((name for name, limit in SETS.items() if call <= limit), None)
        how = f"RBD_BENCH={wider} measures it" if wider else "no set measures it"
        raise NotImplementedError(f"about {call:.2g} s a call: not in the set {SET!r}, {how}")


def on_device(name: str) -> str:
    """torch's name of a device of DEVICES; NotImplementedError without it. torch is only asked where there may be a GPU."""
    if ONLY not in (None, name):
        raise NotImplementedError(f"RBD_BENCH_DEVICE={ONLY}")
    if name == "cpu":
        return "cpu"
    if any(Path(path).exists() for path in ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")) or sys.platform == "win32":
        import torch

        if torch.cuda.is_available():
            return "cuda"
    raise NotImplementedError("there is no GPU")


def available_mib(device: str = "cpu") -> float:
    """Available memory: on Linux what the kernel reports, elsewhere all of it; on a GPU what is free."""
    if device != "cpu":
        import torch

        torch.cuda.empty_cache()  # what torch keeps for later
        return torch.cuda.mem_get_info()[0] / 2**20
    if sys.platform == "linux":
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) / 2**10
    import psutil

    return psutil.virtual_memory().available / 2**20


def fits(what: str, mib: float, device: str = "cpu") -> None:
    """NotImplementedError with the sizes if `mib` is more than 80 % of the available memory."""
    if mib > 0.8 * (there := available_mib(device)):
        raise NotImplementedError(f"does not fit: {what} takes {mib:,.0f} MiB, {there:,.0f} MiB are available")


def attempt(measure: Callable[..., object], *arguments) -> object:
    """The result of a measurement, or the exception that it raised: one cell must not end the others."""
    try:
        return measure(*arguments)
    except NotImplementedError as reason:
        return reason
    except Exception as error:
        if lacks(error):
            return NotImplementedError(str(error))
        return RuntimeError(traceback.format_exc())


def lacks(error: Exception) -> bool:
    """Whether this rbd is an older one, without what was asked for."""
    return any(text in str(error) for text in NOT_YET)


def unwrap(cell: object) -> object:
    """What `attempt` gave, raised if it is an exception: asv takes NotImplementedError for n/a, others for failures."""
    if isinstance(cell, Exception):
        raise cell
    return cell


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
PEAK_GPU = """
import torch
print(torch.cuda.max_memory_allocated() / 2**20)
"""


def fresh(code: str, **environment: str) -> str:
    """What a fresh interpreter prints that runs the code.

    Raises:
        RuntimeError: it failed; with what it wrote.
    """
    places = os.pathsep.join(filter(None, sys.path))  # it finds rbd where this process does
    env = {**os.environ, "PYTHONPATH": places, **environment}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"exit status {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def peak_mib(code: str, device: str = "cpu") -> float:
    """Peak memory of a fresh interpreter that runs the code, MiB: resident (Linux, macOS), or what torch had on the GPU.

    An interpreter before it fills the caches of compiled kernels: compiling takes some 90 MiB, once in an environment.
    """
    if device == "cpu":
        fresh(code)
    return float(fresh(code + (PEAK if device == "cpu" else PEAK_GPU)).split()[-1])
