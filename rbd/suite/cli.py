"""The command `rbd`."""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
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
        print(f"\nrbd: {how}; the same command goes on from the last full epoch", file=sys.stderr)
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

    for command in (reproduce, train, sweep, report, figures):
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
    lanes = "runs at a time that take turns in one process, each on a stream of the GPU (default: a process for each run)"
    sweep.add_argument("--lanes", type=_parse_positive, help=lanes)
    deadline = "seconds after which runs in lanes stop at their last full epoch; the same command goes on (default: never)"
    sweep.add_argument("--deadline", type=_parse_seconds, metavar="SECONDS", help=deadline)
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


def _parse_positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, allowed an integer >= 1")
    return int(text)


def _parse_seconds(text: str) -> float:
    with suppress(ValueError):
        if 0 < (value := float(text)) < float("inf"):
            return value
    raise argparse.ArgumentTypeError(f"got {text!r}, allowed a number > 0")


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

    resources = executor.Resources(given.data_dir, given.device, given.jobs, ray=given.ray, gpus=given.gpus,
                                   lanes=given.lanes, deadline=given.deadline)  # fmt: skip
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
    try:
        picture = report.curves(records, given.results_dir / "figures" / f"{plan.name}.png", given.profile)
        print(f"curves: {picture}")
    except Exception as error:  # whatever matplotlib, its settings or the folder have against it
        print(f"rbd: warning: the curves could not be drawn: {type(error).__name__}: {error}", file=sys.stderr)
    return 0


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
