"""All that half an hour on a rented GPU should answer, in commands of at most ten minutes; what is cut keeps what it has.

    export RBD_COMMIT='HASH TIME' OUT=FOLDER        # git log -1 --format='%H %ct'; not needed in a git checkout
    python -m benchmarks.gpu_campaign first --data DIR      # GPU tests, ratios, steps, generation, memory; begins to train
    python -m benchmarks.gpu_campaign more --data DIR       # as often as needed: data that did not fit into one upload
    python -m benchmarks.gpu_campaign last                  # waits, ends the training, prints tables
    python -m benchmarks.gpu_campaign --rehearse            # all of it on the CPU, with tiny budgets, in a temporary folder

DIR has data sets as files NAME.xz in torchvision's layout, some at a time. Training runs beside the later commands, in a
session of its own: table 1 at the paper's rates and at ours, then ResNet-8, then ResNet-32, of each the runs whose data
have come. It starts again from the checkpoints if a fault of the GPU ends it. Every command packs all that there is so far
into $OUT, as archives of 15 MiB at most.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import lzma
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[1]
PART = 15 * 2**20  # bytes of an archive, before it is packed
PARTS = 8  # archives that come back
SIZE = 10**7  # D of the memory of a step
DIMS = (10, 100, 250, 1000, 10_000, 100_000)
WAYS = ("sgd", "countsketch", "rademacher", "uniform", "normal", "stored fp32")


@dataclass(frozen=True)
class Plan:
    """Where the campaign works, and what it may use."""

    work: Path
    device: str = "cuda"
    profile: str = "paper"
    sweeps: tuple[str, ...] = ("paper_rates", "table1", "networks")
    scripts: Path | None = None  # of the sweeps; None: the package's
    lanes: int = 16
    minutes: float = 26.0  # from the first command on, after which training stops
    tests: float = 200.0  # s, at most
    benchmarks: float = 300.0  # s, at most
    size: int = SIZE

    @property
    def results(self) -> Path:
        return self.work / "results"

    @property
    def rehearses(self) -> bool:
        return self.device == "cpu"


# ---------------------------------------------------------------- commands


def first(plan: Plan, data: Path | None, out: Path) -> int:
    """Unpack, test, measure, and start to train; returns 1 if a test or a benchmark failed or was cut."""
    plan.results.mkdir(parents=True, exist_ok=True)
    (plan.work / "end").write_text(str(time.time() + 60 * plan.minutes))
    failed = unpack(data, plan.work / "data") if data else []
    parts = {"tests": (plan.tests, []), "benchmarks": (plan.benchmarks, ["--bench", "^(ratios|step|generation)"])}
    if plan.rehearses:
        parts["benchmarks"] = (plan.benchmarks, ["--bench", "^generation"])
    for part, (seconds, options) in parts.items():
        failed += [] if check(plan, part, seconds, options) else [part]
        pack(plan, out)
    failed += [] if attempt(lambda: tell_memory(plan), "memory") else ["memory"]
    pack(plan, out)
    start(plan)
    return report_failed(failed)


def more(plan: Plan, data: Path | None, out: Path) -> int:
    """Unpack further data sets, and bring back how far the training is."""
    failed = unpack(data, plan.work / "data") if data else []
    print(*progress(plan), sep="\n")
    pack(plan, out)
    return report_failed(failed)


def last(plan: Plan, out: Path, wait: float) -> int:
    """Wait for the training's end, but no longer than the seconds given; then end it, pack, and print tables."""
    end = time.monotonic() + wait
    while is_training(plan) and time.monotonic() < end:
        time.sleep(0.2)
    stop(plan)
    print(*progress(plan), sep="\n")
    print(*accuracies(plan), sep="\n")
    for archive in pack(plan, out):
        print(f"{archive}: {archive.stat().st_size / 2**20:.1f} MiB")
    return 0


def report_failed(failed: list[str]) -> int:
    if failed:
        print(f"gpu_campaign: failed or cut: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


def attempt(call: Callable[[], object], name: str) -> bool:
    """Whether a part got through; what it raised is shown, and the others go on."""
    try:
        call()
        return True
    except Exception as error:
        print(f"gpu_campaign: {name}: {type(error).__name__}: {error}", file=sys.stderr)
        return False


# ---------------------------------------------------------------- data


def unpack(source: Path, target: Path) -> list[str]:
    """Unpack every file of source in parallel; returns those that are not what the data sets' checksums say."""
    sums, packed = checksums(source), sorted(source.rglob("*.xz"))
    names = [str(path.relative_to(source).with_suffix("")) for path in packed]
    with ProcessPoolExecutor(min(8, len(packed) or 1)) as pool:
        found = list(pool.map(unpack_one, packed, [target / name for name in names], [sums.get(name) for name in names]))
    bad = [name for name, is_good in zip(names, found) if not is_good]
    print(f"unpacked {len(names) - len(bad)} files into {target}")
    return bad


def checksums(source: Path) -> dict[str, str]:
    """File -> md5, of a file MD5SUMS there, else those of the suite."""
    if (source / "MD5SUMS").exists():
        lines = (source / "MD5SUMS").read_text("utf-8").split("\n")
        return {name: md5 for md5, name in (line.split() for line in lines if line)}
    from rbd.suite import datasets

    return {name: md5 for files in datasets._MD5.values() for name, md5 in files.items()}


def unpack_one(packed: Path, target: Path, md5: str | None) -> bool:
    """Unpack one file atomically."""
    try:
        content = lzma.decompress(packed.read_bytes())
    except lzma.LZMAError:
        return False
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.tmp")
    temporary.write_bytes(content)
    os.replace(temporary, target)
    return True


# ---------------------------------------------------------------- tests, benchmarks, memory


def check(plan: Plan, part: str, seconds: float, options: list[str]) -> bool:
    """A part of benchmarks/on_gpu, whose output goes to a file too; it is ended after the seconds given."""
    environment = {**os.environ, "PARTS": part, "PYTHON": sys.executable, "OUT": str(plan.work)}
    if plan.rehearses:
        environment["REHEARSE"] = "1"
    began, log = time.monotonic(), plan.work / f"{part}.log"
    with open(log, "w") as file:
        process = subprocess.Popen([ROOT / "benchmarks" / "on_gpu", *options], env=environment, stdout=file,
                                   stderr=subprocess.STDOUT, start_new_session=True)  # fmt: skip
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            status = process.wait()
    print(f"{part}: exit status {status} after {time.monotonic() - began:.0f} s; {log}")
    print(*log.read_text(errors="replace").splitlines()[-40:], sep="\n", flush=True)
    return status == 0


def tell_memory(plan: Plan) -> None:
    """Peak of a step against d, by the allocator, beyond the parameters; kept as JSON."""
    found = {way: [measure_memory(plan, way, dim) for dim in DIMS] for way in WAYS}
    (plan.work / "memory.json").write_text(json.dumps({"D": plan.size, "d": DIMS, "MiB": found}) + "\n")
    print(f"peak of a step beyond the parameters, MiB, D = {plan.size:,}")
    for way, peaks in found.items():
        cells = ("does not fit" if mib is None else f"{mib:,.0f}" for mib in peaks)
        print(f"{way:12}", *(f"d = {dim:,}: {cell};" for dim, cell in zip(DIMS, cells)))


def measure_memory(plan: Plan, way: str, dim: int) -> float | None:
    """MiB of the second of two steps of a linear layer; None if it does not fit. On the CPU, nothing is counted: 0."""
    import torch

    if way.startswith("stored") and 4 * dim * plan.size > free_bytes(plan):
        return None
    model = torch.nn.Linear(plan.size // 10, 10, bias=False, device=plan.device)
    step = memory_step(model, way, min(dim, plan.size))
    step()
    if plan.device == "cpu":
        return 0.0
    before = 4 * plan.size
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def memory_step(model, way: str, dim: int) -> Callable[[], None]:
    import torch

    from rbd import RBD

    x, size = torch.ones(1, model.in_features, device=model.weight.device), model.weight.numel()
    if way == "stored fp32":
        phi = torch.randn(dim, size, device=x.device)
    elif way == "sgd":
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
    else:
        optimizer = RBD(model.parameters(), 0.1, dim=dim, distribution=way, capturable=x.is_cuda)

    def step() -> None:
        model.zero_grad()
        model(x).sum().backward()
        if way == "stored fp32":
            with torch.no_grad():
                g = model.weight.grad.reshape(-1)
                model.weight.sub_((phi.T @ (phi @ g)).view_as(model.weight), alpha=0.1 / size)
        else:
            optimizer.step()

    return step


def free_bytes(plan: Plan) -> float:
    """What the stored basis may take."""
    import torch

    if plan.device == "cpu":
        return 2**26
    torch.cuda.empty_cache()
    return 0.9 * torch.cuda.mem_get_info()[0] - 64 * plan.size


# ---------------------------------------------------------------- training


def start(plan: Plan) -> None:
    """The training, in a session that outlives this command, unless one is under way."""
    if is_training(plan):
        return print(f"training goes on in process {(plan.work / 'pid').read_text()}")
    command = [sys.executable, "-m", "benchmarks.gpu_campaign", "keep-training", "--plan", dump(plan)]
    with open(plan.work / "training.log", "a") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                                   start_new_session=True)  # fmt: skip
    (plan.work / "pid").write_text(str(process.pid))
    while process.poll() is None and not is_training(plan):  # for some milliseconds it has no command yet
        time.sleep(0.01)
    print(f"training in process {process.pid}: {plan.work / 'training.log'}")


def keep_training(plan: Plan) -> int:
    """Train until all is done or the time is over, by a process that is started again, ever later, if a fault ended it."""
    command = [sys.executable, "-m", "benchmarks.gpu_campaign", "train", "--plan", dump(plan)]
    child: list[subprocess.Popen] = []

    def end(number: int, frame: object) -> None:
        for process in child:
            process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(60)
            process.kill()
        sys.exit(0)

    signal.signal(signal.SIGTERM, end)
    pause = 1.0  # seconds
    while left(plan) > 0:
        child[:] = [subprocess.Popen(command, cwd=ROOT)]
        try:
            if child[0].wait(left(plan) + 60) == 0:
                break
        except subprocess.TimeoutExpired:
            child[0].kill()
        time.sleep(pause)
        pause = min(2 * pause, 60)
    return 0


def train(plan: Plan) -> int:
    """All runs that lack records and whose data are there, sweep by sweep; returns 0 if none is left."""
    from rbd.suite import executor

    signal.signal(signal.SIGTERM, interrupt)
    failed = 0
    for name in plan.sweeps:
        wanted = look(plan, name)
        there = replace(wanted, configs=tuple(c for c in wanted.configs if has(plan, c.data)))
        missing = there.missing(there.look(plan.results)[0])
        if missing and left(plan) > 0:
            print(f"{name}: {len(missing)} of {len(wanted.configs)} runs to do", flush=True)
            resources = executor.Resources(plan.work / "data", plan.device, lanes=plan.lanes, deadline=left(plan))
            failed += len(executor.run_missing(there, missing, plan.results, resources))
    return int(failed > 0 or any(wanted.missing(wanted.look(plan.results)[0]) for wanted in looked(plan)))


def interrupt(number: int, frame: object) -> None:
    signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def look(plan: Plan, name: str):
    """The runs of a sweep, at the rates that the checkout has."""
    from rbd.suite import experiment, rates

    chosen = rates.path(plan.profile, ROOT / "results")
    if chosen.exists() and not rates.path(plan.profile, plan.results).exists():
        shutil.copy(chosen, plan.results)
    return experiment.load(name, plan.scripts).plan(plan.profile, plan.results)


def looked(plan: Plan) -> Iterator:
    return (look(plan, name) for name in plan.sweeps)


def has(plan: Plan, name: str) -> bool:
    """Whether a data set has come."""
    from rbd.suite import datasets

    return name.endswith("-embedded") or all((plan.work / "data" / file).exists() for file in datasets._MD5[name])


def left(plan: Plan) -> float:
    """Seconds for training."""
    return float((plan.work / "end").read_text()) - time.time()


def is_training(plan: Plan) -> bool:
    return find_training(plan) is not None


def find_training(plan: Plan) -> int | None:
    """The process that trains, None if it has ended: another one may have got its number since."""
    try:
        pid = int((plan.work / "pid").read_text())
        with suppress(ChildProcessError):  # of another command, usually
            os.waitpid(pid, os.WNOHANG)
        os.kill(pid, 0)
        return pid if is_ours(pid, plan) else None
    except (OSError, ValueError):
        return None


def is_ours(pid: int, plan: Plan) -> bool:
    """Whether a process trains in this plan's folder, as its command says; where the system has no /proc, it is taken to."""
    if not Path("/proc/self").exists():
        return True
    words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")  # none of a process that only waits to be reaped
    return b"keep-training" in words and any(json.dumps(str(plan.work)).encode() in word for word in words)


def stop(plan: Plan) -> None:
    """End the training: runs keep their last full epoch."""
    with suppress(OSError):  # it may just have ended
        if pid := find_training(plan):
            os.kill(pid, signal.SIGTERM)
    end = time.monotonic() + 70
    while is_training(plan) and time.monotonic() < end:
        time.sleep(0.1)


def progress(plan: Plan) -> Iterator[str]:
    """A line for each sweep."""
    state = f"training, {max(0, left(plan)):.0f} s left" if is_training(plan) else "not training"
    yield f"{state}; {len(list((plan.results / 'checkpoints').glob('*.safetensors')))} runs under way or cut"
    for name, wanted in zip(plan.sweeps, looked(plan)):
        there, damaged = wanted.look(plan.results)
        waiting = f", {len(wanted.waiting)} wait for learning rates" if wanted.waiting else ""
        yield f"{name}: {len(there)} of {len(wanted.configs)} runs done{waiting}"
        yield from damaged


def accuracies(plan: Plan) -> Iterator[str]:
    """Final accuracy of every kind of run that has ended: mean, least and most over the seeds."""
    from rbd.suite.executor import describe
    from rbd.suite.record import final

    for name, wanted in zip(plan.sweeps, looked(plan)):
        by_kind: dict[str, list] = {}
        for made in wanted.look(plan.results)[0]:
            by_kind.setdefault(describe(made.config).rpartition(" seed=")[0], []).append(made)
        for kind, records in by_kind.items():
            ends = [final(made) for made in records]
            took = f"{mean(made.seconds[-1] if made.seconds else 0 for made in records):.0f} s a run"
            yield f"{name}: {kind}: {mean(ends):.2f} % ({min(ends):.2f} to {max(ends):.2f}, n = {len(ends)}), {took}"


# ---------------------------------------------------------------- what comes back


def pack(plan: Plan, out: Path) -> list[Path]:
    """Archives of 15 MiB at most, made anew: records and measurements first, then logs, then checkpoints.

    Files that the training removes meanwhile are left out; so is what does not fit, which is said.
    """
    out.mkdir(parents=True, exist_ok=True)
    folders = ("results/runs", "results/sweeps", "results/failures", "asv")
    files = [path for folder in folders for path in sorted((plan.work / folder).rglob("[!.]*")) if path.is_file()]
    files += [*sorted(plan.work.glob("*.log")), *sorted(plan.work.glob("*.json"))]
    files += sorted((plan.results / "checkpoints").glob("[!.]*.safetensors"))
    parts, made = list(split(files, PART)), []
    for number, part in enumerate(parts[:PARTS], 1):
        made.append(out / f"campaign-{number}.tar.gz")
        with whole(made[-1]) as temporary, tarfile.open(temporary, "w:gz") as archive:
            for path in part:
                with suppress(FileNotFoundError):
                    archive.add(path, path.relative_to(plan.work))
    for part in parts[PARTS:]:
        print(f"left out: {', '.join(path.name for path in part)}", file=sys.stderr)
    return made


def split(files: Iterable[Path], most: int) -> Iterator[list[Path]]:
    """Group files, in their order, into parts of at most `most` bytes; a larger file is a part of its own."""
    part, total = list[Path](), 0
    for path in files:
        size = measure_file(path)
        if part and total + size > most:
            yield part
            part, total = [], 0
        part.append(path)
        total += size
    if part:
        yield part


def measure_file(path: Path) -> int:
    """Bytes; 0 if it is gone."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A file that is there when it is complete."""
    temporary = path.with_name(f".{path.name}.tmp")
    yield temporary
    os.replace(temporary, path)


# ---------------------------------------------------------------- rehearsal

TINY = """
from rbd.suite.config import RunConfig
from rbd.suite.experiment import Experiment

def runs(profile):
    return [RunConfig(method=method, epochs=2, batch_size=500, lr=0.1, seed=seed) for seed in (0, 1)
            for method in ("sgd", "rbd")] + [RunConfig(method="sgd", epochs=9999, batch_size=500, lr=0.1)]

EXPERIMENT = Experiment("tiny", "Does the campaign get through?", runs)
"""


def rehearse() -> int:
    """Every command on the CPU; the last run is too long and is cut. Raises AssertionError where something is missing."""
    with TemporaryDirectory() as folder:
        work, out = Path(folder) / "work", Path(folder) / "out"
        for name, text in (("scripts/tiny.py", TINY), ("data/a/numbers.xz", "0123456789"), ("data/bad.xz", "")):
            (Path(folder) / name).parent.mkdir(parents=True, exist_ok=True)
            content = text.encode()
            (Path(folder) / name).write_bytes(lzma.compress(content) if name.endswith(".xz") else content)
        data = Path(folder) / "data"
        (data / "MD5SUMS").write_text(f"{hashlib.md5(b'0123456789').hexdigest()} a/numbers\n{'0' * 32} bad\n")
        plan = Plan(work, "cpu", "quick", ("tiny",), Path(folder) / "scripts", 2, 10.0, 300.0, 300.0, 1000)
        assert unpack(data, work / "data") == ["bad"], "a damaged file was taken"
        assert (work / "data/a/numbers").read_text() == "0123456789"
        assert first(plan, None, out) == 0, "tests or benchmarks failed"
        assert len(list(out.iterdir())) == 1, "nothing came back from the first command"
        end = time.monotonic() + 60
        while len(list(plan.results.glob("runs/*/*.json"))) < 4 and is_training(plan) and time.monotonic() < end:
            time.sleep(0.2)
        assert more(plan, None, out) == 0
        assert last(plan, out, wait=1.0) == 0 and not is_training(plan)
        names = [name for path in sorted(out.glob("*.tar.gz")) for name in list_names(path)]
        kinds = ("results/runs/tiny-quick/", "results/checkpoints/", "asv/", "memory.json", "tests.log", "training.log")
        lacking = [kind for kind in kinds if not any(name.startswith(kind) for name in names)]
        assert not lacking, f"the archives lack {', '.join(lacking)}: {names}"
        outcomes = [made["outcome"] for made in map(read, plan.results.glob("runs/*/*.json"))]
        assert sorted(outcomes) == ["finished"] * 4 + ["interrupted"], outcomes
    print("rehearsed")
    return 0


def list_names(path: Path) -> list[str]:
    with tarfile.open(path) as archive:
        return archive.getnames()


def read(path: Path) -> dict:
    return json.loads(path.read_text("utf-8"))


def dump(plan: Plan) -> str:
    return json.dumps(vars(plan), default=str)


def load(text: str) -> Plan:
    """The inverse of `dump`."""
    given = json.loads(text)
    scripts = Path(given["scripts"]) if given["scripts"] else None
    return Plan(**given | {"work": Path(given["work"]), "scripts": scripts, "sweeps": tuple(given["sweeps"])})


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_campaign", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    commands = ("first", "more", "last", "train", "keep-training")  # the last two are its own
    parser.add_argument("command", nargs="?", choices=commands, metavar="first|more|last")
    parser.add_argument("--rehearse", action="store_true", help="all commands on the CPU, with tiny budgets, two minutes")
    parser.add_argument("--data", type=Path, metavar="DIR", help="files NAME.xz of data sets")
    parser.add_argument("--work", type=Path, default=Path("/dev/shm/rbd"), help="where it works (default: /dev/shm/rbd)")
    minutes = "from the first command to the end of training (default: 26)"
    parser.add_argument("--minutes", type=float, default=26, help=minutes)
    parser.add_argument("--wait", type=float, default=480, help="seconds that last waits for the end (default: 480)")
    parser.add_argument("--plan", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    plan = load(given.plan) if given.plan else Plan(given.work.resolve(), minutes=given.minutes)
    if given.rehearse:
        return rehearse()
    if given.command is None:
        parser.error("the command is missing: first, more, last, or --rehearse")
    if given.command in ("train", "keep-training"):
        return train(plan) if given.command == "train" else keep_training(plan)
    if given.data and not given.data.is_dir():
        parser.error(f"--data: {given.data}: no such folder")
    if given.command != "first" and not (plan.work / "end").exists():
        parser.error(f"{given.command}: no campaign has begun in {plan.work}: run first, or name its --work")
    out = Path(os.environ.get("OUT", plan.work / "out"))
    if given.command == "last":
        return last(plan, out, given.wait)
    return (first if given.command == "first" else more)(plan, given.data, out)


if __name__ == "__main__":
    sys.exit(main())
