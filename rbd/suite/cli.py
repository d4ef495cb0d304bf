"""The command `rbd`."""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import re
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from rbd import __version__
from rbd.suite import config, experiment, rates, record, report, tables
from rbd.suite.config import RunConfig
from rbd.suite.experiment import Plan
from rbd.suite.record import Record

ALL = "all"  # the name that stands for every experiment
DIGITS = len(str(config.LARGEST))
FOR_RUNS = dict.fromkeys(("jobs", "lanes", "deadline", "seeds", "ray", "gpus", "data_dir")) | {
    "dry_run": False, "device": "cpu",
}  # fmt: skip  # options of `rbd sweep` without a use where it only lists, and their defaults


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
    except KeyboardInterrupt:
        how = "terminated" if received else "interrupted"
        again = f"; run the same command again to continue from {given.kept}" if hasattr(given, "kept") else ""
        print(f"\nrbd: {how}{again}", file=sys.stderr)
        return 143 if received else 130  # 128 + the signal's number
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        if isinstance(error, BrokenPipeError) and _has_left(sys.stdout):  # `head` closes its input early: nothing to report,
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # and nothing to flush at exit
            return 141  # 128 + SIGPIPE, as a shell has it
        print(f"rbd: error: {error}", file=sys.stderr)
        return 2


def _has_left(stream: TextIO) -> bool:
    """Whether the reader of a stream has gone; a broken pipe may also be one to a worker process."""
    try:
        poll = select.poll()  # not on Windows
        poll.register(stream.fileno(), 0)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    except (AttributeError, OSError, ValueError):
        return True


def _open_streams() -> None:
    """Discard output to a closed stream, and print a question mark for a character that a stream cannot encode."""
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


class _Help(argparse.RawDescriptionHelpFormatter):
    """Help that fits a screen: choices are in the text only, and what an option takes is one short word."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=23)

    def _metavar_formatter(self, action: argparse.Action, default_metavar: str) -> Callable[[int], tuple[str, ...]]:
        word = action.metavar or ("NAME" if action.choices else "DIR" if action.dest.endswith("_dir") else "VALUE")
        return super()._metavar_formatter(action, default_metavar) if _is_command(action) else lambda n: (str(word),) * n

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text = action.help or ""
        missing = [str(choice) for choice in action.choices or () if not re.search(rf"\b{choice}\b(?!-)", text)]
        if _is_command(action) or not missing:
            return action.help
        what, bracket, default = text.partition(" (default")
        return f"{what}: {', '.join(map(str, action.choices or ()))}{bracket}{default}"


def _is_command(action: argparse.Action) -> bool:
    return action.nargs == argparse.PARSER


EXAMPLES = {
    "reproduce": ["rbd reproduce --results-dir my-results"],
    "train": ["rbd train --model fc --method rbd --dim 250 --lr 4 --epochs 10", "rbd train --method sgd --epochs 10"],
    "sweep": ["rbd sweep --list", "rbd sweep dimension --jobs 2"],
    "report": ["rbd report", "rbd report --into README.md"],
    "figures": ["rbd figures table1 dimension", "rbd figures --allow-missing"],
    "data": ["rbd data", "rbd data --download mnist"],
    "dimension": ["rbd dimension train.py:evaluate --dims 10 100 1000 10000 --jobs 2"],
}  # of the commands, below their options


def _shape_help(commands: Any) -> None:
    """Give every command the short help, what it does, and its examples."""
    about = {action.dest: str(action.help) for action in commands._choices_actions}
    for name, command in commands.choices.items():
        command.formatter_class = _Help
        command.description = f"{about[name][0].upper()}{about[name][1:]}."
        places = [a for a in command._get_positional_actions() if a.metavar]
        words = [f"[{a.metavar}{' ...' * (a.nargs == '*')}]" if a.nargs else str(a.metavar) for a in places]
        words += [f"{a.option_strings[0]} {a.metavar}" for a in command._get_optional_actions() if a.required]
        command.usage = " ".join(["rbd", name, *words, "[OPTION ...]"])
        if name in EXAMPLES:
            command.epilog = "\n".join(["examples:", *(f"  {line}" for line in EXAMPLES[name])])


def _parser() -> argparse.ArgumentParser:
    about = "Train neural networks in random bases that are never stored."
    examples = "examples:\n  rbd reproduce --results-dir my-results\n  rbd sweep --list\n  rbd train --help"
    parser = argparse.ArgumentParser(prog="rbd", description=about, formatter_class=_Help, epilog=examples)
    parser.add_argument("--version", action="version", version=f"rbd {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    reproduce = commands.add_parser("reproduce", help="run the paper's table 1; runs that are done are skipped")
    profiles = "quick: images in the package, minutes on two cores; paper: full data, 100 epochs, days (default: quick)"
    reproduce.add_argument("--profile", choices=("quick", "paper"), default="quick", help=profiles)
    reproduce.set_defaults(run=_reproduce, into=None, json=False)

    train = commands.add_parser("train", help="train one network and write its record")
    config.add_arguments(train)
    wait = "seconds that an exchange between workers may take (default: 60)"
    train.add_argument("--timeout", type=_parse_positive, default=60, help=wait)
    train.set_defaults(run=_train)

    sweep = _add_sweep(commands)

    for command in (reproduce, train, sweep):
        command.set_defaults(kept="the last full epoch")
        command.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cpu or cuda (default: cpu)")
    sweep.set_defaults(kept="the last full epoch, or part of a measurement")
    for command, default in {reproduce: 1, train: "torch's"}.items():
        command.add_argument("--threads", type=_parse_positive, help=f"CPU threads of a run (default: {default})")

    report = commands.add_parser("report", help="print table 1 and draw the learning curves, from the records")
    profile = "profile of the records (default: quick)"
    report.add_argument("--profile", choices=("quick", "paper"), default="quick", help=profile)
    report.add_argument("--into", type=Path, metavar="README", help="write the tables between this file's <!-- marks -->")
    report.set_defaults(run=_report)

    figures = _add_figures(commands)
    data = _add_data(commands)
    dimension = _add_dimension(commands)
    what = {sweep: "with --list: the same as JSON", report: "print JSON, draw nothing", data: "print JSON"}
    for command, help in what.items():
        command.add_argument("--json", action="store_true", help=help)

    for command in (reproduce, train, sweep, report, figures, dimension):
        where = "records, figures and tables (default: results)"
        command.add_argument("--results-dir", type=_parse_folder, default="results", help=where)
    for command in (reproduce, train, sweep, data):
        where = "full data sets (default: $RBD_DATA_DIR, else a cache)"
        command.add_argument("--data-dir", type=_parse_folder, help=where)
    _shape_help(commands)
    return parser


def _add_sweep(commands: Any) -> argparse.ArgumentParser:
    sweep = commands.add_parser("sweep", help="run what is missing of an experiment, several runs at a time")
    sweep.add_argument("name", nargs="?", metavar="NAME", help="an experiment that --list names, or all")
    sweep.add_argument("--list", action="store_true", help="show every experiment: runs done, missing, time left")
    profiles = "quick: 5,000 images, few epochs; paper: full data, 100 epochs (default: quick; with --list both)"
    sweep.add_argument("--profile", choices=("quick", "paper"), help=profiles)
    each = "runs at a time (default: one per core; 1 to compare times)"
    sweep.add_argument("--jobs", type=_parse_positive, help=each)
    sweep.add_argument("--lanes", type=_parse_positive, help="runs at a time in one process, taking turns on a GPU")
    deadline = "with --lanes: stop after so long, at each run's last full epoch"
    sweep.add_argument("--deadline", type=_parse_number, metavar="SECONDS", help=deadline)
    seeds = "seeds in place of the experiment's own; figures do not use such runs"
    sweep.add_argument("--seeds", type=_parse_seed, nargs="+", metavar="SEED", help=seeds)
    sweep.add_argument("--dry-run", action="store_true", help="write the list of runs, show those missing, run none")
    sweep.add_argument("--ray", metavar="ADDRESS", help="Ray cluster to run on, such as auto or ray://host:10001")
    sweep.add_argument("--gpus", type=_parse_gpus, help="with --ray: GPUs of a run (default: 0.25 with cuda, else 0)")
    scripts = "experiment scripts of your own (default: the package's)"
    sweep.add_argument("--sweeps-dir", type=_parse_folder, metavar="DIR", help=scripts)
    sweep.set_defaults(run=_sweep)
    return sweep


def _add_figures(commands: Any) -> argparse.ArgumentParser:
    figures = commands.add_parser("figures", help="draw figures and tables from the results, and index the verdicts")
    which = "notebooks of analysis/ to run, or index to write only the index of the verdicts (default: all)"
    figures.add_argument("names", nargs="*", metavar="NAME", help=which)
    profile = "profile of the runs (default: quick)"
    figures.add_argument("--profile", choices=("quick", "paper"), default="quick", help=profile)
    figures.add_argument("--allow-missing", action="store_true", help="draw although runs are missing; the figure says so")
    figures.set_defaults(run=_figures)
    return figures


def _add_data(commands: Any) -> argparse.ArgumentParser:
    data = commands.add_parser("data", help="show which data sets are present, or download one")
    lacks = "download the missing files of mnist, fmnist or cifar10"
    data.add_argument("--download", choices=("mnist", "fmnist", "cifar10"), metavar="NAME", help=lacks)
    data.set_defaults(run=_data)
    return data


def _add_dimension(commands: Any) -> argparse.ArgumentParser:
    dimension = commands.add_parser("dimension", help="measure how many dimensions a task of your own needs")
    target = "function(dim, seed) in your script: returns a positive number, larger where better; such as train.py:evaluate"
    dimension.add_argument("target", metavar="SCRIPT:FUNCTION", help=target)
    dims = "dimensions to try; runs that are done are skipped"
    dimension.add_argument("--dims", type=_parse_positive, nargs="+", required=True, metavar="D", help=dims)
    seeds = "seeds to run at each dimension (default: 0 1 2)"
    dimension.add_argument("--seeds", type=_parse_seed, nargs="+", default=[0, 1, 2], metavar="SEED", help=seeds)
    jobs = "runs at a time, which share the cores (default: 1)"
    dimension.add_argument("--jobs", type=_parse_positive, default=1, help=jobs)
    baseline = "d90 is the dimension that reaches 90 %% of this number (default: of the mean at the largest dimension)"
    dimension.add_argument("--baseline", type=_parse_number, metavar="VALUE", help=baseline)
    dimension.set_defaults(run=_dimension, kept="the last run that ended")
    return dimension


def _parse_number(text: str) -> float:
    with suppress(ValueError):
        if 0 < (value := float(text)) < math.inf:
            return value
    raise argparse.ArgumentTypeError(f"got {text!r}, allowed a finite number > 0")


def _parse_positive(text: str, low: int = 1) -> int:
    if text.isdecimal() and len(text) <= DIGITS and low <= (value := int(text)) <= config.LARGEST:
        return value
    raise argparse.ArgumentTypeError(f"got {text!r}, allowed an integer {low} ... {config.LARGEST}")


def _parse_seed(text: str) -> int:
    return _parse_positive(text, low=0)


def _parse_folder(text: str) -> Path:
    """A directory, or where one can be made. An empty text is a variable of the shell that is not set."""
    path = Path(text)
    there = next((p for p in (path, *path.parents) if os.path.lexists(p)), path)  # a link may lead nowhere
    if not text or os.path.lexists(there) and not there.is_dir():
        raise argparse.ArgumentTypeError(f"got {text!r}, allowed a directory{f'; {there} is not one' * bool(text)}")
    return path


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
    there = experiment.find(wanted, directory, given.results_dir)
    done = "already done: " if there and there.outcome != "interrupted" else ""
    with _show_log():
        made = run(wanted, directory, given.results_dir, **options, timeout=given.timeout)
    if made is None:  # worker 0 reports
        return 0
    print(f"{experiment.place(made, directory, given.results_dir)}: {done}{record.summary(made)}")
    if made.outcome == "interrupted":
        raise KeyboardInterrupt
    return int(made.outcome == "diverged")


@contextmanager
def _show_log() -> Iterator[None]:
    """Within the block, show the library's log on stderr, above a progress bar if there is one."""
    import logging

    from tqdm import tqdm

    class Beside(logging.Handler):
        def emit(self, told: logging.LogRecord) -> None:
            tqdm.write(f"rbd: {told.getMessage()}", file=sys.stderr)

    log, beside = logging.getLogger("rbd"), Beside()
    before = log.level
    log.setLevel(logging.INFO)
    log.addHandler(beside)
    try:
        yield
    finally:
        log.removeHandler(beside)
        log.setLevel(before)


def _reproduce(given: argparse.Namespace) -> int:
    from rbd.suite import executor

    plan = _plan_table1(given, given.profile)
    todo = _find_missing(given, plan)  # raises now, rather than hours later, if a record is damaged
    resources = executor.Resources(given.data_dir, given.device, threads=given.threads)
    status = _tell(executor.perform(experiment.load("table1"), given.profile, given.results_dir, resources))
    if todo or not (picture := _picture(given, plan)).exists():
        _report(given)
    else:  # the picture stays as it is: in a clone it is under version control
        _print_table(given, plan)
        print(f"curves: {picture} (drawn before; `rbd report` draws it again)")
        print("All runs were done before. To repeat them, give a new directory: --results-dir my-results")
    return status or int(bool(_find_missing(given, plan)))


def _find_missing(given: argparse.Namespace, plan: Plan) -> tuple[RunConfig, ...]:
    """Runs without a record, those that wait for a learning rate too. Raises ValueError if a record is damaged."""
    return (*plan.missing(plan.records(given.results_dir)), *plan.waiting)


def _sweep(given: argparse.Namespace) -> int:
    if not (given.list or given.name):
        _check_nothing_to_run(given)
    if given.list or not given.name:
        profiles = (given.profile,) if given.profile else experiment.PROFILES
        names = None if given.name in (None, ALL) else [given.name]
        where = given.results_dir, profiles, given.sweeps_dir, names
        if given.json:
            print(json.dumps([*experiment.survey_values(*where)], indent=1))
        else:
            print(*experiment.survey(*where), sep="\n")
        return 0
    if given.json:
        raise ValueError("--json: needs --list")
    from rbd.suite import executor

    resources = executor.Resources(given.data_dir, given.device, given.jobs, ray=given.ray, gpus=given.gpus,
                                   lanes=given.lanes, deadline=given.deadline)  # fmt: skip
    how = (given.profile or "quick", given.results_dir, resources, given.seeds, given.dry_run)
    if given.name == ALL:
        return _tell(executor.perform_all(*how, given.sweeps_dir))
    return _tell(executor.perform(experiment.load(given.name, given.sweeps_dir), *how))


def _check_nothing_to_run(given: argparse.Namespace) -> None:
    """Raise ValueError if an option says how to run an experiment, and none is named."""
    for name, default in FOR_RUNS.items():
        if vars(given)[name] != default:
            option = f"--{name.replace('_', '-')}"
            raise ValueError(f"{option}: needs NAME, an experiment that `rbd sweep --list` names, or {ALL}")


def _tell(problems: Iterable[str]) -> int:
    """Print the problems on stderr, at the end and each once; returns the exit status."""
    lines: dict[str, None] = {}
    try:
        for line in problems:
            lines[line] = None
    finally:  # also when interrupted
        for line in lines:
            print(line, file=sys.stderr)
    return int(bool(lines))


def _plan_table1(given: argparse.Namespace, profile: str) -> Plan:
    """The runs of table 1. Raises ValueError if no learning rate is known for any of them."""
    plan = experiment.load("table1").plan(profile, given.results_dir)
    if not plan.configs:
        raise ValueError(f"{plan.name}: {rates.explain(plan.untuned, profile)}")
    return plan


def _report(given: argparse.Namespace) -> int:
    plan = _plan_table1(given, given.profile)
    records = _print_table(given, plan)  # before the picture, which may fail
    if given.json:
        return 0
    _show_picture("curves", lambda: report.curves(records, _picture(given, plan), given.profile))
    return 0


def _show_picture(what: str, draw: Callable[[], Path]) -> None:
    """Draw and say where it is; a warning where that fails."""
    try:
        print(f"{what}: {draw()}")
    except Exception as error:  # any failure of matplotlib, its settings or the folder
        print(f"rbd: warning: the {what} could not be drawn: {type(error).__name__}: {error}", file=sys.stderr)


def _print_table(given: argparse.Namespace, plan: Plan) -> list[Record]:
    records, missing = _load_table1(given, plan)
    table, legend = report.table(records, given.profile), report.legend(missing)
    if given.into:
        _fill_marks(given)
    if given.json:
        print(json.dumps({"name": plan.name, "missing": missing, "cells": report.values(records)}, indent=1))
    else:
        print(f"\n{tables.align(table) if sys.stdout.isatty() else table}\n\n{legend}\n", flush=True)
    return records


def _load_table1(given: argparse.Namespace, plan: Plan) -> tuple[list[Record], int]:
    """The records of table 1, and how many are missing. Raises ValueError if none is there."""
    records = plan.records(given.results_dir)
    if not records:
        first = f"run `rbd reproduce --profile {plan.name.rpartition('-')[2]}`"
        raise ValueError(f"{plan.directory(given.results_dir)}: no records of {plan.name}; {first}")
    return records, len((*plan.missing(records), *plan.waiting))


def _fill_marks(given: argparse.Namespace) -> None:
    """Put between the marks of a file what they name: table 1 of the quick profile, and what the notebook verdicts wrote."""

    def render() -> str:
        records, missing = _load_table1(given, _plan_table1(given, "quick"))
        return f"{report.table(records, 'quick')}\n\n{report.legend(missing)}"

    def read(name: str) -> str:
        return report.link_claims(report.read_table(name, given.results_dir), given.results_dir, given.into.parent)

    drawn = {mark: partial(read, name) for mark, name in report.DRAWN.items()}
    report.insert_into(given.into, {"table1-quick": render} | drawn)


def _picture(given: argparse.Namespace, plan: Plan) -> Path:
    return given.results_dir / "figures" / f"{plan.name}.png"


def _figures(given: argparse.Namespace) -> int:
    from rbd.suite import figures

    names, states = figures.choose(given.names), []
    try:
        for number, name in enumerate(names, 1):
            print(f"[{number}/{len(names)}] {name}, profile {given.profile}: ", end="", flush=True)
            drawn = figures.draw(name, given.profile, given.results_dir, given.allow_missing)
            states.append(drawn.state)
            told = {"drawn": "drawn", "empty": f"nothing to draw yet: {drawn.message}", "failed": f"FAILED: {drawn.message}"}
            print(f"{told[drawn.state]} ({drawn.seconds:.1f} s)", flush=True)
    except KeyboardInterrupt:
        with suppress(ValueError, OSError):  # the index has what was drawn until now
            figures.write_index(given.results_dir, figures.list_notebooks())
        raise
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
    directory, files = datasets.data_dir(given.data_dir), datasets.status(given.data_dir)
    if given.json:
        states = [{"dataset": file.dataset, "path": str(file.path), "state": file.state} for file in files]
        print(json.dumps({"directory": str(directory), "files": states}, indent=1))
        return 0
    print(f"directory of the full data sets: {directory}")
    print(*files, sep="\n")
    if any(file.state != "ok" for file in files):
        print("fetch what is missing or damaged with `rbd data --download NAME`; the embedded sets come with the package")
    return 0


if __name__ == "__main__":
    sys.exit(main())
