"""The command `rbd`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from rbd import __version__, config


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
    train.set_defaults(run=_train)

    for command in (reproduce, train):
        command.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cpu or cuda (default: cpu)")
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

    for command in (reproduce, train, report, figures):
        where = "directory of the records (default: results)"
        command.add_argument("--results-dir", type=Path, default=Path("results"), help=where)
    for command in (reproduce, train, data):
        where = "directory of the full data sets (default: $RBD_DATA_DIR, else a cache directory)"
        command.add_argument("--data-dir", type=Path, help=where)
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, allowed an integer >= 1")
    return int(text)


def _options(given: argparse.Namespace) -> dict:
    return {"data_dir": given.data_dir, "device": given.device, "threads": given.threads, "bar": None}


def _train(given: argparse.Namespace) -> int:
    from rbd import record, sweep

    wanted = config.from_arguments(given)
    directory = given.results_dir / "runs" / "train"
    made = sweep.run(wanted, directory, given.results_dir, **_options(given))
    print(f"{directory / wanted.id}.json: {record.summary(made)}")
    if made.outcome == "interrupted":
        raise KeyboardInterrupt
    return int(made.outcome == "diverged")


def _reproduce(given: argparse.Namespace) -> int:
    from rbd import record, sweep

    table1 = sweep.table1(given.profile)
    directory = table1.directory(given.results_dir)
    missing = len(table1.configs) - len(table1.records(given.results_dir))
    print(f"{table1.name}: {len(table1.configs)} runs, {missing} to do, records in {directory}", flush=True)
    if missing:
        _require_data(table1.configs, given)
    for number, wanted in enumerate(table1.configs, 1):
        there = record.find(wanted, directory)
        made = sweep.run(wanted, directory, given.results_dir, **_options(given))
        if made.outcome == "interrupted":
            raise KeyboardInterrupt
        if there is None or there.outcome == "interrupted":
            print(f"[{number}/{len(table1.configs)}] {wanted.model} {wanted.data} {wanted.method} seed {wanted.seed}: "
                  f"{record.summary(made)}", flush=True)  # fmt: skip
    return _report(given)


def _require_data(configs: tuple[config.RunConfig, ...], given: argparse.Namespace) -> None:
    """Raise now, rather than hours later, if a data set is missing or damaged."""
    from rbd import data

    for name in dict.fromkeys(c.data for c in configs):
        data.load(name, given.data_dir)


def _report(given: argparse.Namespace) -> int:
    from rbd import report, sweep

    table1 = sweep.table1(given.profile)
    records = table1.records(given.results_dir)
    if not records:
        first = f"run `rbd reproduce --profile {given.profile}`"
        raise ValueError(f"{table1.directory(given.results_dir)}: no records of {table1.name}; {first}")
    missing = len(table1.configs) - len(records)
    text = f"{report.table(records, given.profile)}\n\n{report.legend(given.profile, missing)}"
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
