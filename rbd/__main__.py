"""The command `rbd`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from rbd import __version__, config

if TYPE_CHECKING:
    from rbd.runner import Failure, Workers
    from rbd.sweep import Sweep


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, 1 (diverged, or a figure failed), 2 (bad input) or 130 (interrupted)."""
    parser = _parser()
    given = parser.parse_args(arguments)
    try:
        status = given.run(given)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # the reader has left, as `head` does: nothing to say, and nothing to flush at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # 128 + SIGPIPE, as a shell has it
    except KeyboardInterrupt:
        print("\nrbd: interrupted; the same command goes on from the last full epoch", file=sys.stderr)
        return 130
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        print(f"rbd: error: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    about = "Train neural networks in random bases that are never stored."
    parser = argparse.ArgumentParser(prog="rbd", description=about)
    parser.add_argument("--version", action="version", version=f"rbd {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    reproduce = commands.add_parser("reproduce", help="run the paper's table 1; what is done already is not run again")
    profiles = "quick: images in the package, minutes on two cores; paper: full data, 100 epochs, days (default: quick)"
    reproduce.add_argument("--profile", choices=("quick", "paper"), default="quick", help=profiles)
    reproduce.set_defaults(run=_reproduce)

    train = commands.add_parser("train", help="do one run")
    config.add_arguments(train)
    wait = "seconds that workers wait for each other (default: 60)"
    train.add_argument("--timeout", type=_positive, default=60, help=wait)
    train.set_defaults(run=_train)

    sweep = commands.add_parser("sweep", help="do the runs of an experiment that are not there yet, side by side")
    sweep.add_argument("name", nargs="?", metavar="NAME", help="experiment: a script in the sweeps directory; or all")
    sweep.add_argument("--list", action="store_true", help="show every experiment: runs done and missing, cost")
    sweep.add_argument("--profile", choices=("quick", "paper"), help="which set-up (default: quick; with --list both)")
    each = "runs at a time, which share the cores (default: one for each core; one where seconds count)"
    sweep.add_argument("--jobs", type=_positive, help=each)
    seeds = "these in place of the script's seeds (the list of runs stays the script's, and no figure shows such runs)"
    sweep.add_argument("--seeds", type=int, nargs="+", metavar="SEED", help=seeds)
    sweep.add_argument("--dry-run", action="store_true", help="write the list of runs and show those missing; run none")
    sweep.add_argument("--ray", metavar="ADDRESS", help="send the runs to this Ray cluster, as auto or ray://host:10001")
    sweep.add_argument("--gpus", type=_share, help="share of a GPU for a run there (default: 0.25 with cuda, else 0)")
    sweep.add_argument("--sweeps-dir", type=Path, default=Path("benchmarks/sweeps"), metavar="DIR",
                       help="directory of the scripts (default: benchmarks/sweeps)")  # fmt: skip
    sweep.set_defaults(run=_sweep)

    for command in (reproduce, train, sweep):
        command.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cpu or cuda (default: cpu)")
    for command in (reproduce, train):
        command.add_argument("--threads", type=_positive, help="CPU threads of a run (default: as torch decides)")

    report = commands.add_parser("report", help="print the table and draw the curves of the records that are there")
    report.add_argument("--profile", choices=("quick", "paper"), default="quick", help="whose records (default: quick)")
    report.add_argument("--into", type=Path, metavar="README", help="also put the table between its marks in this file")
    report.set_defaults(run=_report)

    figures = commands.add_parser("figures", help="draw the figures and tables of the results, and index the evidence")
    which = "notebooks of analysis/ to run, or index for the index of the evidence alone (default: all)"
    figures.add_argument("names", nargs="*", metavar="NAME", help=which)
    figures.add_argument("--profile", choices=("quick", "paper"), default="quick", help="whose runs (default: quick)")
    figures.add_argument("--allow-missing", action="store_true", help="draw what is there, and say so in the figure")
    figures.set_defaults(run=_figures)

    data = commands.add_parser("data", help="show which data sets are present, or download one")
    lacks = "fetch what this set lacks: mnist, fmnist or cifar10"
    data.add_argument("--download", choices=("mnist", "fmnist", "cifar10"), metavar="NAME", help=lacks)
    data.set_defaults(run=_data)

    for command in (reproduce, train, sweep, report, figures):
        where = "directory of the records (default: results)"
        command.add_argument("--results-dir", type=Path, default=Path("results"), help=where)
    for command in (reproduce, train, sweep, data):
        where = "directory of the full data sets (default: $RBD_DATA_DIR, else a cache directory)"
        command.add_argument("--data-dir", type=Path, help=where)
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, allowed an integer >= 1")
    return int(text)


def _share(text: str) -> float:
    with suppress(ValueError):
        value = float(text)
        if 0 <= value <= 1 or value > 1 and value.is_integer():
            return value
    raise argparse.ArgumentTypeError(f"got {text!r}, allowed 0 ... 1, or a whole number of GPUs")


def _options(given: argparse.Namespace) -> dict:
    return {"data_dir": given.data_dir, "device": given.device, "threads": given.threads, "bar": None}


def _train(given: argparse.Namespace) -> int:
    from rbd import record, sweep

    started = int(os.environ.get("WORLD_SIZE", 1)) if "TORCHELASTIC_RUN_ID" in os.environ else 1  # by torchrun
    if started > 1 and given.workers is None:
        given.workers = started
    wanted = config.from_arguments(given)
    directory = given.results_dir / "runs" / "train"
    run = _run_together if started > 1 else sweep.run
    made = run(wanted, directory, given.results_dir, **_options(given), timeout=given.timeout)
    if made is None:  # worker 0 tells
        return 0
    print(f"{sweep.place(wanted, directory, given.results_dir)}: {record.summary(made)}")
    if made.outcome == "interrupted":
        raise KeyboardInterrupt
    return int(made.outcome == "diverged")


def _run_together(wanted: config.RunConfig, directory: Path, results: Path, timeout: int, **options):
    """sweep.run by torchrun's workers: worker 0 keeps record and checkpoints; None on the others."""
    from rbd import sweep
    from rbd.distributed import Workers, join
    from rbd.train import train

    assert wanted.workers is not None and wanted.variant is not None
    with join(wanted.workers, timeout, options["device"]):
        workers = Workers(wanted.variant)
        found = workers.tell(sweep.find(wanted, directory, results) if workers.rank == 0 else None)
        if workers.rank == 0:
            return sweep.run(wanted, directory, results, **options)
        if found is None or found.outcome == "interrupted":
            train(wanted, results / "checkpoints", **options)
        return None


def _reproduce(given: argparse.Namespace) -> int:
    from rbd import record, sweep

    table1 = sweep.table1(given.profile, given.results_dir)
    directory = table1.directory(given.results_dir)
    record.write(sweep.manifest_path(table1.name, given.results_dir), table1.manifest(), "a list of runs")
    missing = len(table1.configs) - len(table1.records(given.results_dir))
    print(f"{table1.name}: {len(table1.configs)} runs, {missing} to do, records in {directory}", flush=True)
    if table1.waiting:
        print(f"rbd: warning: {table1.name}: {sweep.untuned(table1.untuned, given.profile)}", file=sys.stderr)
    if missing:
        _require_data(table1.configs, given)
    for number, wanted in enumerate(table1.configs, 1):
        there = sweep.find(wanted, directory, given.results_dir)
        made = sweep.run(wanted, directory, given.results_dir, **_options(given))
        if made.outcome == "interrupted":
            raise KeyboardInterrupt
        if there is None or there.outcome == "interrupted":
            print(f"[{number}/{len(table1.configs)}] {wanted.model} {wanted.data} {wanted.method} seed {wanted.seed}: "
                  f"{record.summary(made)}", flush=True)  # fmt: skip
    return _report(given)


def _sweep(given: argparse.Namespace) -> int:
    from rbd import sweep

    if given.list or not given.name:
        return _list(given)
    if given.name != sweep.ALL:
        problems = _experiment(given.name, given)
        _tell(problems)
        return int(bool(problems))
    problems = []
    try:
        for name in sweep.ordered(given.sweeps_dir):
            try:
                if given.seeds and hasattr(sweep.script(name, given.sweeps_dir), "conclude"):
                    continue  # its choice rests on seeds of its own
                problems += _experiment(name, given)
            except (ValueError, TypeError, OSError, RuntimeError) as error:  # the others go on
                problems.append(f"failed: {name}: {error}")
    finally:  # also when interrupted
        _tell(problems)
    return int(bool(problems))


def _tell(lines: Iterable[str]) -> None:
    for line in dict.fromkeys(lines):  # a run may have failed in several sweeps
        print(line, file=sys.stderr)


def _experiment(name: str, given: argparse.Namespace) -> list[str]:
    """Do the runs, or the measurement, of one experiment; a line for everything that is wrong at the end."""
    from rbd import record, runner, sweep

    results, profile, module = given.results_dir, given.profile or "quick", sweep.script(name, given.sweeps_dir)
    if hasattr(module, "measure"):
        print(runner.measured(module, f"{name}-{profile}", profile, results, given.data_dir, given.dry_run), flush=True)
        return []
    made = sweep.plan(name, profile, results, given.sweeps_dir)
    record.write(sweep.manifest_path(made.name, results), made.manifest(), "a list of runs")
    wanted = made if given.seeds is None else made.with_seeds(given.seeds)
    records, problems = wanted.look(results)
    missing = wanted.missing(records)  # damaged ones too, whose runs fail and say why
    print(f"{made.name}: {len(wanted.configs)} runs, {len(missing)} to do, records in {made.directory(results)}", flush=True)
    if given.dry_run:
        print(*(f"{c.id} {runner.describe(c)}" for c in missing), sep="\n", end="\n" * bool(missing))
    else:
        failures = _perform(module, made, wanted, missing, given)
        problems = [f"failed: {runner.describe(f.config)}: {f.message} ({f.path(results)})" for f in failures]
    if made.waiting:
        problems.append(f"rbd: warning: {made.name}: {sweep.untuned(made.untuned, profile)}")
    return problems


def _perform(module: ModuleType, made: Sweep, wanted: Sweep, missing: tuple[config.RunConfig, ...],
             given: argparse.Namespace) -> list[Failure]:  # fmt: skip
    """Do the runs that are wanted, and conclude from those of the script, whatever the seeds that are wanted."""
    from rbd import runner

    if missing and not given.ray:  # the nodes have data sets of their own
        _require_data(missing, given)
    workers, jobs, threads = _workers(given, len(missing), getattr(module, "alone", False))
    options = {"data_dir": given.data_dir, "device": given.device, "threads": threads}
    try:
        return runner.perform(wanted, given.results_dir, jobs, workers, options)
    finally:  # also when interrupted: what has ended may be enough for some of it
        if hasattr(module, "conclude"):
            records, _ = made.look(given.results_dir)
            for line in module.conclude(given.profile or "quick", made.configs, records, given.results_dir):
                print(f"rbd: warning: {line}", file=sys.stderr)


def _workers(given: argparse.Namespace, missing: int, alone: bool) -> tuple[Workers, int, int]:
    """Workers here or on a cluster, the number of runs at a time, and the threads of each."""
    from rbd import runner

    if given.ray and missing:
        from rbd.cluster import Cluster

        share = given.gpus if given.gpus is not None else 0.25 if given.device == "cuda" else 0.0
        cluster = Cluster(given.ray, 1, share)
        return cluster, given.jobs or cluster.places, 1
    jobs = given.jobs or (1 if alone else min(runner.cores(), missing)) or 1
    return runner.Processes(), jobs, max(1, runner.cores() // jobs)


def _list(given: argparse.Namespace) -> int:
    from rbd import runner, sweep

    seconds = runner.calibrated(runner.readable(given.results_dir))
    for name in sweep.experiments(given.sweeps_dir):
        module = sweep.script(name, given.sweeps_dir)
        print(f"{name}: {str(module.__doc__).strip()}")
        for profile in (given.profile,) if given.profile else sweep.PROFILES:
            print(f"    {profile}: {runner.state(name, profile, given.results_dir, given.sweeps_dir, seconds)}")
    return 0


def _require_data(configs: tuple[config.RunConfig, ...], given: argparse.Namespace) -> None:
    """Raise now, rather than hours later, if a data set is missing or damaged."""
    from rbd import data

    for name in dict.fromkeys(c.data for c in configs):
        data.load(name, given.data_dir)


def _report(given: argparse.Namespace) -> int:
    from rbd import report, sweep

    table1 = sweep.table1(given.profile, given.results_dir)
    records = table1.records(given.results_dir)
    if not records:
        first = f"run `rbd reproduce --profile {given.profile}`"
        raise ValueError(f"{table1.directory(given.results_dir)}: no records of {table1.name}; {first}")
    missing = len(table1.configs) + len(table1.waiting) - len(records)
    text = f"{report.table(records, given.profile)}\n\n{report.legend(missing)}"
    picture = report.curves(records, given.results_dir / "figures" / f"{table1.name}.png", given.profile)
    if getattr(given, "into", None):
        try:
            given.into.write_text(report.insert(given.into.read_text("utf-8"), table1.name, text), "utf-8")
        except ValueError as error:
            raise ValueError(f"{given.into}: {error}") from error
    print(f"\n{text}\n\ncurves: {picture}")
    return 0


def _figures(given: argparse.Namespace) -> int:
    from rbd import figures

    names, states = figures.chosen(given.names), []
    for number, name in enumerate(names, 1):
        print(f"[{number}/{len(names)}] {name}, profile {given.profile}: ", end="", flush=True)
        drawn = figures.draw(name, given.profile, given.results_dir, given.allow_missing)
        states.append(drawn.state)
        told = {"drawn": "drawn", "empty": f"nothing to draw yet: {drawn.message}", "failed": f"FAILED: {drawn.message}"}
        print(f"{told[drawn.state]} ({drawn.seconds:.1f} s)", flush=True)
    path = figures.write_index(given.results_dir, figures.available())
    counts = ", ".join(f"{states.count(state)} {state}" for state in ("drawn", "empty", "failed") if state in states)
    where = f"figures and tables: {given.results_dir}" + (f"; index: {path}" if path else "")
    print(f"{counts}; {where}" if counts else where)
    return int("failed" in states)


def _data(given: argparse.Namespace) -> int:
    from rbd import data

    if given.download:
        data.download(given.download, given.data_dir)
    print(f"directory of the full data sets: {data.data_dir(given.data_dir)}")
    files = data.status(given.data_dir)
    print(*files, sep="\n")
    if any(file.state == "missing" for file in files):
        print("fetch a missing set with `rbd data --download NAME`; the embedded ones come with the package")
    return 0


if __name__ == "__main__":
    sys.exit(main())
