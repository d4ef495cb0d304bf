"""The tables of README.md, from the committed results alone: `python -m benchmarks.table` writes them between the marks."""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

from benchmarks._cost import ON_DEMAND, WAYS, stored_mib
from benchmarks.loop import BATCHES
from benchmarks.memory import LARGE as MEMORY_LARGE
from benchmarks.memory import SIZE as MEMORY_SIZE
from benchmarks.ratios import SKETCH_DIMS, SKETCH_RIVALS, SKETCH_SIZES
from benchmarks.size import CACHES
from benchmarks.step import DIMS, PRICED
from benchmarks.workers import COUNTS, RIVALS, VARIANTS

ROOT = Path(__file__).parents[1]
NAME = {"rademacher": "signs", "all_reduce": "gloo's all-reduce"}
DEVICES = {"cpu": "CPU", "gpu": "GPU"}
MACHINE = ("machine", "cpu", "num_cpu", "ram", "os")  # what a table says of a machine


@dataclass(frozen=True)
class Results:
    """One result file of asv: a commit on a machine."""

    path: Path
    machine: dict
    commits: tuple[str, ...]  # whole hashes; of several files that are taken together, those with benchmarks of their own
    committed: int  # milliseconds since 1970
    started: float  # seconds since 1970, of the first benchmark
    python: str
    values: dict[str, dict[tuple[str, ...], float]]  # benchmark -> parameters -> value, without n/a and failures
    versions: dict[str, str]  # of the benchmarks, when they were run

    def get(self, benchmark: str, *cell: str) -> float:
        """The value of a cell, nan where there is none."""
        return self.values.get(benchmark, {}).get(cell, math.nan)


def load(path: Path) -> Results:
    """Raises ValueError if the file is none of asv's."""
    try:
        found = json.loads(path.read_text("utf-8"))
        rows = {name: dict(zip(found["result_columns"], row)) for name, row in found["results"].items()}
        values = {name: _cells(row.get("params") or [], row["result"] or []) for name, row in rows.items()}
        versions = {name: row.get("version") or "" for name, row in rows.items()}
        started = [row["started_at"] for row in rows.values() if row.get("started_at")]
        began = min(started, default=0) / 1000
        commit, machine = (str(found["commit_hash"]),), {name: str(found["params"][name]) for name in MACHINE}
        int(machine["ram"])  # bytes
        return Results(path, machine, commit, int(found["date"]), began, found["python"], values, versions)
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError, RecursionError) as error:
        raise ValueError(f"{path}: not a result file of asv: {error!r}") from error


def _cells(params: list[list[str]], results: list) -> dict[tuple[str, ...], float]:
    cells = itertools.product(*([value.strip("'") for value in values] for values in params))
    return {cell: value for cell, value in zip(cells, results) if isinstance(value, (int, float)) and math.isfinite(value)}


def by_machine(folder: Path) -> list[list[Results]]:
    """The results of every machine, the oldest commit and run first; machines by name."""
    machines = sorted(path.parent for path in folder.glob("*/machine.json"))
    files = [[p for p in sorted(place.glob("*.json")) if p.name != "machine.json"] for place in machines]
    found = [[r for r in map(load, paths) if r.values] for paths in files]  # asv writes one also where it could not build
    return [sorted(results, key=lambda r: (r.committed, r.started)) for results in found if results]


def latest(folder: Path) -> list[Results]:
    """Of every machine the results of the youngest commit for each benchmark, and of its last run."""
    return [_take_youngest(results) for results in by_machine(folder)]


def _take_youngest(results: Sequence[Results]) -> Results:
    """One of several files of a machine, the oldest first: each benchmark's values are those of the last that has it."""
    of = {name: r for r in results for name in r.values}
    values, versions = ({name: getattr(r, field)[name] for name, r in of.items()} for field in ("values", "versions"))
    commits = tuple(dict.fromkeys(r.commits[0] for r in results if r in list(of.values())))
    return replace(results[-1], commits=commits, values=values, versions=versions)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _any(rows: Sequence[Sequence[str]]) -> bool:
    return any(cell not in ("n/a", "") and not cell.endswith("iB)") for row in rows for cell in row[1:])


def _known(rows: Sequence[Sequence[str]]) -> list[Sequence[str]]:
    """Without the ways that an older commit does not have."""
    return [row for row in rows if set(row[1:]) != {"n/a"}]


def _size(mib: float) -> str:
    return f"{mib / 2**10:,.0f} GiB" if mib >= 2**10 else f"{mib:,.0f} MiB"


def ratios(results: Results, device: str) -> str:
    """How many times faster than each rival a product on demand is, project / expand."""
    rivals = [way for way in WAYS if any((device, ours, way) in results.values.get("ratios.Ratio.track_project", {})
                                         for ours in ON_DEMAND)]  # fmt: skip

    def cell(way: str, rival: str) -> str:
        p, e = (results.get(f"ratios.Ratio.track_{what}", device, way, rival) for what in ("project", "expand"))
        return "n/a" if math.isnan(p) and math.isnan(e) else f"{_times(1 / p)} / {_times(1 / e)}"

    rows = [[NAME.get(way, way), *(cell(way, rival) for rival in rivals)] for way in reversed(ON_DEMAND)]
    return _table(["entries", *rivals], _known(rows)) if rivals else ""


def sketches(results: Results, device: str) -> str:
    """How many times faster than each rival a sketch is at the same d and D, project / expand."""

    def cell(rival: str, dim: int, size: int) -> str:
        p, e = (
            results.get(f"ratios.Sketch.track_{what}", device, rival, str(dim), str(size)) for what in ("project", "expand")
        )
        return "n/a" if math.isnan(p) else f"{_times(1 / p)} / {_times(1 / e)}"

    shapes = [(dim, size) for size in SKETCH_SIZES for dim in SKETCH_DIMS]
    rows = [[NAME.get(rival, rival), *(cell(rival, *shape) for shape in shapes)] for rival in SKETCH_RIVALS]
    return (
        _table(["countsketch against", *(f"d = {dim:,}, D = {size:,}" for dim, size in shapes)], rows) if _any(rows) else ""
    )


def _times(x: float) -> str:
    return "n/a" if math.isnan(x) else f"{x:.0f} ×" if x >= 20 else f"{x:.1f} ×" if x >= 2 else f"{_hundredths(x)} ×"


def _hundredths(x: float) -> str:
    return f"{x:.2f}".replace("-", "−")


def products(results: Results, device: str, dim: str = "1000") -> str:
    """Milliseconds of project by all ways, against D; where a stored basis did not fit, its size."""
    sizes = ("100000", "1000000", "10000000", "100000000")
    ram = int(results.machine["ram"])

    def cell(way: str, size: str) -> str:
        value = results.get("kernels.Product.track_project", device, way, dim, size)
        mib = stored_mib(way, int(dim), int(size))
        large = device == "cpu" and mib > 0.8 * ram / 2**20
        return f"{value:.3g}" if not math.isnan(value) else f"({_size(mib)})" if large else "n/a"

    rows = [[NAME.get(way, way), *(cell(way, size) for size in sizes)] for way in WAYS]
    return (
        _table([f"project, ms; d = {int(dim):,}", *(f"D = {int(size):,}" for size in sizes)], _known(rows))
        if _any(rows)
        else ""
    )


def steps(results: Results, device: str) -> str:
    """Milliseconds of a step, and as a multiple of SGD's."""
    methods = ("sgd", "rbd rademacher", "rbd uniform", "rbd normal", "rbd rademacher by_layer", "fpd rademacher",
               "nes rademacher", "rbd countsketch", "rbd countsketch 10000")  # fmt: skip

    # Version 1 took ratios from other blocks than times: the two contradicted each other where the machine was not quiet.
    same_blocks = results.versions.get("step.Step.track_time") != "1"

    def cell(network: str, method: str) -> str:
        ms = results.get("step.Step.track_time", device, network, method)
        ratio = results.get("step.Step.track_against_sgd", device, network, method)
        if math.isnan(ms) or method == "sgd":
            return "n/a" if math.isnan(ms) else f"{ms:.3g} ms"
        return f"{ms:.3g} ms ({_times(ratio)})" if same_blocks else _times(ratio)

    rows = [[network, *(cell(network, method) for method in methods)] for network in ("fc", "cnn", "resnet8", "resnet32")]
    heads = [m.replace("rademacher", "signs").replace(" 10000", ", d = 10,000") for m in methods]
    return _table(["step", *heads], rows) if _any(rows) else ""


def prices(results: Results, device: str) -> str:
    """A training step of the FC net against d, as a multiple of SGD's."""

    def cell(method: str, dim: int) -> str:
        value = results.get("step.Price.track_against_sgd", device, "fc", str(dim), method)
        return "n/a" if math.isnan(value) else _times(value)

    names = {method: " ".join(NAME.get(word, word) for word in method.split()) for method in PRICED}
    rows = [[name, *(cell(method, dim) for dim in DIMS)] for method, name in names.items()]
    return _table(["step of the FC net", *(f"d = {dim:,}" for dim in DIMS)], rows) if _any(rows) else ""


def loops(results: Results, device: str) -> str:
    """The suite's training step as a multiple of a bare loop's."""
    found = [results.get("loop.Loop.track_against_torch", pair) for pair in BATCHES]
    row = ["the suite's step", *("n/a" if math.isnan(x) else _times(x) for x in found)]
    return _table(["against a bare loop's", *BATCHES], [row]) if device == "cpu" and _any([row]) else ""


def memory(results: Results, device: str) -> str:
    """Peak MiB of a process that makes two steps, against d."""
    dims = ("10", "100", "250", "1000", "10000", "100000")

    def cell(way: str, dim: str) -> str:
        value = results.get("memory.Peak.track_step", device, way, dim)
        mib = stored_mib(way, int(dim), MEMORY_SIZE)
        return f"{value:,.0f}" if not math.isnan(value) else f"n/a ({_size(mib)})" if mib else "n/a"

    ways = ("countsketch", "rademacher", "uniform", "normal", "stored fp32")
    rows = [[NAME.get(way, way), *(cell(way, dim) for dim in dims)] for way in ways]
    head = [f"peak of a step, MiB; D = {MEMORY_SIZE:,}", *(f"d = {int(dim):,}" for dim in dims)]
    return _table(head, _known(rows)) if _any(rows) else ""


def beside_sgd(results: Results, device: str) -> str:
    """Peak of a step beyond that of SGD, as a multiple of the parameters."""
    dims = ("250", "10000", "100000")
    found = {way: [results.get("memory.BesideSGD.track_step", device, way, dim) for dim in dims]
             for way in ("countsketch", "rademacher")}  # fmt: skip
    rows = [[NAME.get(way, way), *("n/a" if math.isnan(x) else _hundredths(x) for x in line)] for way, line in found.items()]
    head = f"peak of a step beyond SGD's, in vectors of D floats; D = {MEMORY_LARGE:,}"
    return _table([head, *(f"d = {int(dim):,}" for dim in dims)], rows) if _any(rows) else ""


def workers(results: Results, device: str) -> str:
    """A step of W workers, and what one of them regenerates in it, as multiples of the step of one process."""

    def cell(variant: str, count: str) -> str:
        step, own = (results.get(f"workers.{what}.track_step", variant, count) for what in ("Steps", "Regeneration"))
        return "n/a" if math.isnan(step) else f"{_times(step)} ({_times(own)})"

    return _against_workers("step of W workers", VARIANTS, COUNTS, cell) if device == "cpu" else ""


def exchange(results: Results, device: str) -> str:
    """What a step of W workers exchanges, alone: time as a multiple of the step of one process, and bytes."""

    def cell(variant: str, count: str) -> str:
        time, sent = (results.get(f"workers.Exchange.track_{what}", variant, count) for what in ("step", "bytes"))
        return "n/a" if math.isnan(time) else _times(time) + (f", {sent:,.0f} B" if not math.isnan(sent) else "")

    return _against_workers("exchange alone", (*VARIANTS, *RIVALS), COUNTS[1:], cell) if device == "cpu" else ""


def _against_workers(title: str, variants: Sequence[str], counts: Sequence[int], cell: Callable[[str, str], str]) -> str:
    rows = [[NAME.get(variant, variant), *(cell(variant, str(count)) for count in counts)] for variant in variants]
    return _table([title, *(f"W = {count}" for count in counts)], rows) if _any(rows) else ""


PARTS: tuple[tuple[Callable[[Results, str], str], str], ...] = (
    (ratios, "How many times faster than a rival a product on demand is, project / expand, at d = 256, D = 101,770 "
             "(median of 7 pairs of neighbouring blocks):"),
    (sketches, "How many times faster than a rival at the same d and D a sketch is, project / expand; copy: "
               "`u.copy_(g)` of D floats; d = 250: the same sketch with 250 rows:"),
    (products, "Time of a product by every way (median of 3 blocks); n/a: in the slow set, or not measured; in brackets: "
               "the size of a stored basis that does not fit:"),
    (steps, "A whole training step, batch 32, d = 250 if no other is named, and as a multiple of SGD's:"),
    (prices, "A step of the FC net against d, torch on one thread, the kernels on all:"),
    (loops, "The suite's training step by SGD, with augmentation, bookkeeping and validation, on one thread, as a multiple "
            "of a bare torch loop's on batches in memory:"),
    (memory, "Memory:"),
    (beside_sgd, "Memory beside SGD's:"),
    (workers, "Workers, W processes of this machine with a share of its cores each, d = 250, D = 101,770, signs: a step "
              "as a multiple of that of one such process alone (median of 20, the slowest worker's), and in brackets what a "
              "worker regenerates in it, measured while the others wait:"),
    (exchange, "What they exchange, alone: time as above, and bytes that a worker sends in a step:"),
)  # fmt: skip


def section(results: Results) -> str:
    """All tables of one machine, under where, when and what they come from."""
    m, day = results.machine, datetime.fromtimestamp(results.started, timezone.utc)
    commits = f"commit{'s' * (len(results.commits) > 1)} {', '.join(c[:8] for c in results.commits)}"
    head = (f"**{m['machine']}**: {m['num_cpu']} cores, {m['cpu']}, {int(m['ram']) / 2**30:.0f} GiB, {m['os']}, "
            f"Python {results.python}; {day:%Y-%m-%d}, {commits}, n = 1 run, "
            f"`{_command(results)}`")  # fmt: skip
    parts = [
        f"{_device(results, d)}. {text}\n\n{made}" for d in DEVICES for part, text in PARTS if (made := part(results, d))
    ]
    return "\n\n".join([head, *parts])


def _device(results: Results, device: str) -> str:
    """What a table holds for: the processor, and the caches that decide how fast a stored basis is read."""
    if device != "cpu":
        return DEVICES[device]
    sizes = {cache: results.get("size.Cache.track_size", cache) for cache in CACHES}
    known = [f"{cache} {_cache(kib)}" for cache, kib in sizes.items() if not math.isnan(kib)]
    return f"{DEVICES[device]}, {results.machine['cpu']} ({', '.join(known) or 'cache sizes were not recorded'})"


def _cache(kib: float) -> str:
    return f"{kib / 2**10:g} MiB" if kib >= 2**10 else f"{kib:g} KiB"


def _command(results: Results) -> str:
    """What made the results: benchmarks.run names its environments by the process it ran in."""
    if "-process-" in results.path.name:
        return "benchmarks/on_gpu" if " with " in results.machine["cpu"] else "python -m benchmarks.run --save results/asv"
    return f"tox -e bench -- run {results.commits[-1][:8]}^!"


@dataclass(frozen=True)
class Quantity:
    """Ratios that are told as one range over all commits of a machine.

    Attributes:
        name: what a reader is told.
        cells: benchmark and parameters of each value.
        target: what every value should reach; None: there is no target.
        inverse: whether 1/value is told: how many times faster, which should be at least the target. Else at most.
        either: whether the larger of value and 1/value is told: how far two times differ, whichever is longer.
        unit: of the numbers.
    """

    name: str
    cells: tuple[tuple[str, ...], ...]
    target: float | None = None
    inverse: bool = False
    either: bool = False
    unit: str = " ×"

    def find(self, results: Sequence[Results]) -> list[float]:
        """Its values in results of one machine, the oldest first, by the last version of each benchmark."""
        version = {name: r.versions[name] for r in results for name in r.values}
        found = [r.get(*cell) for r in results for cell in self.cells if r.versions.get(cell[0]) == version.get(cell[0])]
        known = [1 / x if self.inverse else x for x in found if not math.isnan(x)]
        return [max(x, 1 / x) for x in known] if self.either else known

    def meets(self, value: float) -> bool:
        return self.target is not None and (value >= self.target if self.inverse else value <= self.target)


def _against(name: str, target: float | None, entries: str, rival: str, *products: str) -> Quantity:
    cells = tuple((f"ratios.Ratio.track_{product}", "cpu", entries, rival) for product in products)
    return Quantity(f"{name}, {' and '.join(f'`{product}`' for product in products)}", cells, target, inverse=True)


def _sketch(name: str, target: float, rival: str, dims: Sequence[int], *products: str, sizes: Sequence[int] = (101_770,),
            **side: bool) -> Quantity:  # fmt: skip
    """side: inverse or either, of a Quantity."""
    cells = tuple((f"ratios.Sketch.track_{p}", "cpu", rival, str(d), str(D)) for p in products for d in dims for D in sizes)
    return Quantity(f"countsketch {name}, {' and '.join(f'`{p}`' for p in products)}", cells, target, **side)


def _step(name: str, target: float, methods: Sequence[str], networks: Sequence[str], dims: Sequence[int] = ()) -> Quantity:
    cells = [("step.Step.track_against_sgd", "cpu", network, method) for network in networks for method in methods]
    cells += [("step.Price.track_against_sgd", "cpu", "fc", str(dim), methods[0]) for dim in dims]
    return Quantity(name, tuple(cells), target)


BOTH, SKETCHES, OTHERS = ("project", "expand"), ("rbd countsketch", "rbd countsketch 10000"), ("cnn", "resnet8", "resnet32")
QUANTITIES = (
    _against("signs against stored fp32", 10, "rademacher", "stored fp32", "project"),
    _against("signs against stored fp32", 6, "rademacher", "stored fp32", "expand"),
    _against("signs against stored bits", None, "rademacher", "stored bits", "project"),
    _against("signs against stored bits", None, "rademacher", "stored bits", "expand"),
    _against("uniform against stored fp32", 1.5, "uniform", "stored fp32", *BOTH),
    _against("normal against stored fp32", 0.5, "normal", "stored fp32", *BOTH),
    _against("normal against `torch.randn`", 15, "normal", "randn", *BOTH),
    *(Quantity(f"{NAME.get(way, way)} against stored fp32, `project`, strict turn",
               (("ratios.BetweenOperations.track_project", way, "stored fp32"),), inverse=True)
      for way in ("rademacher", "uniform", "normal")),
    _sketch("against signs, d = 250", 15, "rademacher", (250,), *BOTH, inverse=True),
    _sketch("against signs, d = 10,000", 500, "rademacher", (10_000,), *BOTH, inverse=True),
    *(_sketch("against a stored sketch, d = 250 and 10,000", 3, "stored sketch", SKETCH_DIMS, product, inverse=True)
      for product in BOTH),
    _sketch("against a stored sketch, d = 250 and 10,000, D ≥ 1e7", 3, "stored sketch", SKETCH_DIMS, *BOTH,
            sizes=(10**7, 10**8), inverse=True),
    _sketch("against a Hadamard transform, d = 250 and 10,000, D = 1e7", 3, "hadamard", SKETCH_DIMS, *BOTH, sizes=(10**7,),
            inverse=True),
    _sketch("against scikit-learn's sparse projection, d = 250, D = 1e7", 3, "sklearn sparse", (250,), *BOTH,
            sizes=(10**7,), inverse=True),
    _sketch("at d = 250 and 10,000, longer time over shorter", 1.25, "d = 250", (10_000,), *BOTH, either=True),
    _sketch("as a multiple of the time of `u.copy_(g)`, d = 250 and 10,000, D ≥ 1e7", 2.5, "copy", SKETCH_DIMS, *BOTH,
            sizes=(10**7, 10**8)),
    _step("step of the FC net with signs, d = 250", 3, ("rbd rademacher",), ("fc",), (250,)),
    _step("step of the FC net with countsketch, d = 1 to D", 1.35, SKETCHES, ("fc",), DIMS),
    _step("step of the CNN and the ResNets with countsketch", 1.1, SKETCHES, OTHERS),
    Quantity("memory of a step with countsketch beyond SGD's, vectors of D floats",
             tuple(("memory.BesideSGD.track_step", "cpu", "countsketch", dim) for dim in ("250", "10000", "100000")), 3,
             unit=""),
    Quantity("the suite's step against a bare loop's", tuple(("loop.Loop.track_against_torch", p) for p in BATCHES), 1.1),
)  # fmt: skip


def targets(folder: Path) -> str:
    """The range of every quantity over the commits of a machine, and how many of its numbers meet the target."""
    machines = by_machine(folder)
    head = ["what", "target", *(text for results in machines for text in (results[0].machine["machine"], "met by"))]
    rows = []
    for quantity in QUANTITIES:
        aim = f"{'≥' if quantity.inverse else '≤'} {quantity.target:g}{quantity.unit}" if quantity.target else "–"
        told = [text for results in machines for text in _told(quantity, quantity.find(results))]
        rows.append([quantity.name, aim, *told])
    return _table(head, rows) if machines else "No results are committed yet."


def _told(quantity: Quantity, found: Sequence[float]) -> tuple[str, str]:
    """The range, and how many meet the target."""
    if not found:
        return "n/a", "–"
    low, high = (_times(x).removesuffix(" ×") for x in (min(found), max(found)))
    met = f"{sum(map(quantity.meets, found)) if quantity.target else '–'} of {len(found)}"
    return f"{low if low == high else f'{low} to {high}'}{quantity.unit}", met


def tables(folder: Path) -> str:
    return "\n\n".join(section(results) for results in latest(folder)) or "No results are committed yet."


def written(text: str, folder: Path) -> str:
    """A page with the tables between its marks."""
    from rbd.suite.report import insert  # here, so that asv can import this module beside an rbd that has no such function

    return insert(insert(text, "asv", tables(folder)), "targets", targets(folder))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.table", description=__doc__)
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "asv", help="default: results/asv")
    parser.add_argument("--into", type=Path, default=ROOT / "benchmarks" / "README.md", help="default: benchmarks/README.md")
    given = parser.parse_args()
    from rbd.suite.report import insert_into  # here, as above

    try:
        insert_into(given.into, {"asv": lambda: tables(given.results), "targets": lambda: targets(given.results)})
    except (ValueError, OSError) as error:
        raise SystemExit(f"benchmarks.table: {error}") from error


if __name__ == "__main__":
    main()
