"""The command `rbd`."""

from __future__ import annotations

import argparse
import io
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rbd import __version__
from rbd.suite import config, experiment, rates, record, report
from rbd.suite.experiment import Plan

ALL = "all"  # the name that stands for every experiment


def main(arguments: list[str] | None = None) -> int:
    """Run the command.

    Returns:
        The exit status: 0, 1 (diverged, or a figure failed), 2 (bad input), 130 (interrupted) or 143 (terminated).
    """
    _open_streams()
    given, received = _parser().parse_args(arguments), list[int]()
    try:
        with _end_on_sigterm(received):
            status = given.run(given)
            sys.stdout.flush()
            return status
    except BrokenPipeError:  # the reader has left, as `head` does: nothing to say, and nothing to flush at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # 128 + SIGPIPE, as a shell has it
    except KeyboardInterrupt:
        how = "terminated" if received else "interrupted"
        print(f"\nrbd: {how}; the same command goes on from {given.kept}", file=sys.stderr)
        return 143 if received else 130  # 128 + the signal's number
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        print(f"rbd: error: {error}", file=sys.stderr)
        return 2


def _open_streams() -> None:
    """Output goes nowhere where a stream is closed; a character that it cannot encode becomes a question mark."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  # for as long as the process lives
        if isinstance(stream := getattr(sys, name), io.TextIOWrapper):
            stream.reconfigure(errors="replace")


@contextmanager
def _end_on_sigterm(received: list[int]) -> Iterator[None]:
    """SIGTERM (docker stop, Slurm, Kubernetes) ends the block as Ctrl-C does and is noted; a second one ends the process."""

    def interrupt(number: int, frame: object) -> None:
        received.append(number)
        signal.signal(number, signal.SIG_DFL)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # which alone may handle signals
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _parser() -> argparse.ArgumentParser:
    about = "Train neural networks in random bases that are never stored."
    parser = argparse.ArgumentParser(prog="rbd", description=about)
    parser.add_argument("--version", action="version", version=f"rbd {__version__}")
    parser.set_defaults(kept="the last full epoch")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    reproduce = commands.add_parser("reproduce", help="run the paper's table 1; what is done already is not run again")
    profiles = "quick: images in the package, minutes on two cores; paper: full data, 100 epochs, days (default: quick)"
    reproduce.add_argument("--profile", choices=("quick", "paper"), default="quick", help=profiles)
    reproduce.set_defaults(run=_reproduce)

    train = commands.add_parser("train", help="do one run")
    config.add_arguments(train)
    wait = "seconds that workers wait for each other (default: 60)"
    train.add_argument("--timeout", type=_parse_positive, default=60, help=wait)
    train.set_defaults(run=_train)

    sweep = _add_sweep(commands)

    for command in (reproduce, train, sweep):
        command.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cpu or cuda (default: cpu)")
    for command in (reproduce, train):
        command.add_argument("--threads", type=_parse_positive, help="CPU threads of a run (default: as torch decides)")

    report = commands.add_parser("report", help="print the table and draw the curves of the records that are there")
    report.add_argument("--profile", choices=("quick", "paper"), default="quick", help="whose records (default: quick)")
    report.add_argument("--into", type=Path, metavar="README", help="also put the table between its marks in this file")
    report.set_defaults(run=_report)

    figures = _add_figures(commands)
    data = _add_data(commands)
    dimension = _add_dimension(commands)

    for command in (reproduce, train, sweep, report, figures, dimension):
        where = "directory of the records (default: results)"
        command.add_argument("--results-dir", type=Path, default=Path("results"), help=where)
    for command in (reproduce, train, sweep, data):
        where = "directory of the full data sets (default: $RBD_DATA_DIR, else a cache directory)"
        command.add_argument("--data-dir", type=Path, help=where)
    return parser


def _add_sweep(commands: Any) -> argparse.ArgumentParser:
    sweep = commands.add_parser("sweep", help="do the runs of an experiment that are not there yet, side by side")
    sweep.add_argument("name", nargs="?", metavar="NAME", help="experiment: see --list; or all")
    sweep.add_argument("--list", action="store_true", help="show every experiment: runs done and missing, cost")
    sweep.add_argument("--profile", choices=("quick", "paper"), help="which set-up (default: quick; with --list both)")
    each = "runs at a time, which share the cores (default: one for each core; one where seconds count)"
    sweep.add_argument("--jobs", type=_parse_positive, help=each)
    seeds = "these in place of the experiment's seeds (its list of runs stays, and no figure shows such runs)"
    sweep.add_argument("--seeds", type=int, nargs="+", metavar="SEED", help=seeds)
    sweep.add_argument("--dry-run", action="store_true", help="write the list of runs and show those missing; run none")
    sweep.add_argument("--ray", metavar="ADDRESS", help="send the runs to this Ray cluster, as auto or ray://host:10001")
    sweep.add_argument("--gpus", type=_parse_gpus, help="share of a GPU for a run there (default: 0.25 with cuda, else 0)")
    scripts = "directory of experiment scripts of your own (default: those of the package)"
    sweep.add_argument("--sweeps-dir", type=Path, metavar="DIR", help=scripts)
    sweep.set_defaults(run=_sweep)
    return sweep


def _add_figures(commands: Any) -> argparse.ArgumentParser:
    figures = commands.add_parser("figures", help="draw the figures and tables of the results, and index the evidence")
    which = "notebooks of analysis/ to run, or index for the index of the evidence alone (default: all)"
    figures.add_argument("names", nargs="*", metavar="NAME", help=which)
    figures.add_argument("--profile", choices=("quick", "paper"), default="quick", help="whose runs (default: quick)")
    figures.add_argument("--allow-missing", action="store_true", help="draw what is there, and say so in the figure")
    figures.set_defaults(run=_figures)
    return figures


def _add_data(commands: Any) -> argparse.ArgumentParser:
    data = commands.add_parser("data", help="show which data sets are present, or download one")
    lacks = "fetch what this set lacks: mnist, fmnist or cifar10"
    data.add_argument("--download", choices=("mnist", "fmnist", "cifar10"), metavar="NAME", help=lacks)
    data.set_defaults(run=_data)
    return data


def _add_dimension(commands: Any) -> argparse.ArgumentParser:
    dimension = commands.add_parser("dimension", help="measure how many dimensions a task of your own needs")
    target = "a function(dim, seed) that gives a metric, larger where better, as train.py:evaluate"
    dimension.add_argument("target", metavar="SCRIPT:FUNCTION", help=target)
    dims = "dimensions to try; what is done already is not run again"
    dimension.add_argument("--dims", type=_parse_positive, nargs="+", required=True, metavar="D", help=dims)
    seeds = "seeds of the runs at each of them (default: 0 1 2)"
    dimension.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="SEED", help=seeds)
    jobs = "runs at a time, which share the cores (default: 1)"
    dimension.add_argument("--jobs", type=_parse_positive, default=1, help=jobs)
    baseline = "metric of which d90 reaches 90 %% (default: the mean at the largest dimension)"
    dimension.add_argument("--baseline", type=_parse_metric, metavar="VALUE", help=baseline)
    dimension.set_defaults(run=_dimension, kept="the last run that ended")
    return dimension


def _parse_metric(text: str) -> float:
    with suppress(ValueError):
        if 0 < (value := float(text)) < math.inf:
            return value
    raise argparse.ArgumentTypeError(f"got {text!r}, allowed a finite number > 0")


def _parse_positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, allowed an integer >= 1")
    return int(text)


def _parse_gpus(text: str) -> float:
    with suppress(ValueError):
        value = float(text)
        if 0 <= value <= 1 or value > 1 and value.is_integer():
            return value
    raise argparse.ArgumentTypeError(f"got {text!r}, allowed 0 ... 1, or a whole number of GPUs")


def _train(given: argparse.Namespace) -> int:
    from rbd.suite import job

    started = job.count_torchrun()
    if started > 1 and given.workers is None:
        given.workers = started
    wanted = config.from_arguments(given)
    directory = given.results_dir / "runs" / "train"
    options = {"data_dir": given.data_dir, "device": given.device, "threads": given.threads, "bar": None}
    run = job.run_together if started > 1 else job.run
    made = run(wanted, directory, given.results_dir, **options, timeout=given.timeout)
    if made is None:  # worker 0 tells
        return 0
    print(f"{experiment.place(made, directory, given.results_dir)}: {record.summary(made)}")
    if made.outcome == "interrupted":
        raise KeyboardInterrupt
    return int(made.outcome == "diverged")


def _reproduce(given: argparse.Namespace) -> int:
    from rbd.suite import executor

    plan = _plan_table1(given)
    plan.records(given.results_dir)  # raises now, rather than hours later, if one is damaged
    resources = executor.Resources(given.data_dir, given.device, threads=given.threads)
    _tell(executor.perform(experiment.load("table1"), given.profile, given.results_dir, resources))
    _report(given)
    return int(bool(plan.missing(plan.records(given.results_dir))))


def _sweep(given: argparse.Namespace) -> int:
    if given.list or not given.name:
        profiles = (given.profile,) if given.profile else experiment.PROFILES
        for line in experiment.survey(given.results_dir, profiles, given.sweeps_dir):
            print(line)
        return 0
    from rbd.suite import executor

    resources = executor.Resources(given.data_dir, given.device, given.jobs, ray=given.ray, gpus=given.gpus)
    how = (given.profile or "quick", given.results_dir, resources, given.seeds, given.dry_run)
    if given.name == ALL:
        return _tell(executor.perform_all(*how, given.sweeps_dir))
    return _tell(executor.perform(experiment.load(given.name, given.sweeps_dir), *how))


def _tell(problems: Iterable[str]) -> int:
    """Show on stderr, at the end, what was not as it should be, each line once; returns the exit status."""
    lines: dict[str, None] = {}
    try:
        for line in problems:
            lines[line] = None
    finally:  # also when interrupted
        for line in lines:
            print(line, file=sys.stderr)
    return int(bool(lines))


def _plan_table1(given: argparse.Namespace) -> Plan:
    """The runs of table 1. Raises ValueError if no learning rate is known for any of them."""
    plan = experiment.load("table1").plan(given.profile, given.results_dir)
    if not plan.configs:
        raise ValueError(f"{plan.name}: {rates.explain(plan.untuned, given.profile)}")
    return plan


def _report(given: argparse.Namespace) -> int:
    plan = _plan_table1(given)
    records = plan.records(given.results_dir)
    if not records:
        first = f"run `rbd reproduce --profile {given.profile}`"
        raise ValueError(f"{plan.directory(given.results_dir)}: no records of {plan.name}; {first}")
    missing = (*plan.missing(records), *plan.waiting)
    text = f"{report.table(records, given.profile)}\n\n{report.legend(len(missing))}"
    if getattr(given, "into", None):
        report.insert_into(given.into, plan.name, text)
    print(f"\n{text}\n", flush=True)  # before the picture, which may fail
    picture = given.results_dir / "figures" / f"{plan.name}.png"
    _show_picture("curves", lambda: report.curves(records, picture, given.profile))
    return 0


def _show_picture(what: str, draw: Callable[[], Path]) -> None:
    """Draw and say where it is; a warning where that fails."""
    try:
        print(f"{what}: {draw()}")
    except Exception as error:  # whatever matplotlib, its settings or the folder have against it
        print(f"rbd: warning: the {what} could not be drawn: {type(error).__name__}: {error}", file=sys.stderr)


def _figures(given: argparse.Namespace) -> int:
    from rbd.suite import figures

    names, states = figures.choose(given.names), []
    for number, name in enumerate(names, 1):
        print(f"[{number}/{len(names)}] {name}, profile {given.profile}: ", end="", flush=True)
        drawn = figures.draw(name, given.profile, given.results_dir, given.allow_missing)
        states.append(drawn.state)
        told = {"drawn": "drawn", "empty": f"nothing to draw yet: {drawn.message}", "failed": f"FAILED: {drawn.message}"}
        print(f"{told[drawn.state]} ({drawn.seconds:.1f} s)", flush=True)
    path = figures.write_index(given.results_dir, figures.list_notebooks())
    counts = ", ".join(f"{states.count(state)} {state}" for state in ("drawn", "empty", "failed") if state in states)
    where = f"figures and tables: {given.results_dir}" + (f"; index: {path}" if path else "")
    print(f"{counts}; {where}" if counts else where)
    return int("failed" in states)


def _dimension(given: argparse.Namespace) -> int:
    from rbd.suite import dimension

    dims, seeds = sorted(set(given.dims)), list(dict.fromkeys(given.seeds))
    target = dimension.find_target(given.target, given.results_dir)
    status = _tell(dimension.perform(target, dims, seeds, given.results_dir, given.jobs))
    runs = dimension.read(target, dims, seeds)
    if not runs:
        return status
    verdict, found = dimension.conclude(runs, dims, given.baseline)
    print(f"\n{dimension.format_table(runs)}\n\n{verdict}\n", flush=True)
    _show_picture("metric against d", lambda: dimension.draw(target, runs, found))
    return status


def _data(given: argparse.Namespace) -> int:
    from rbd.suite import datasets

    if given.download:
        datasets.download(given.download, given.data_dir)
    print(f"directory of the full data sets: {datasets.data_dir(given.data_dir)}")
    files = datasets.status(given.data_dir)
    print(*files, sep="\n")
    if any(file.state == "missing" for file in files):
        print("fetch a missing set with `rbd data --download NAME`; the embedded ones come with the package")
    return 0


if __name__ == "__main__":
    sys.exit(main())
