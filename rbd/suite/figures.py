"""Runs the notebooks of analysis/, which turn results/ into figures and tables, and indexes their verdicts. No torch.

A notebook gets profile, results and allow_missing in the cell tagged "parameters", in a kernel of this interpreter. Its
outputs are not kept: what it writes into the results directory is the product.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rbd.suite import findings, report, store, tables
from rbd.suite.executor import wait_for_one

if TYPE_CHECKING:
    from nbclient import NotebookClient

ANALYSIS = Path(__file__).resolve().parents[2] / "analysis"
NEEDED = ("nbclient", "nbformat", "ipykernel", "pandas", "scipy", "seaborn")
ONE = ("schematic", "speed", "memory")  # these do not depend on the profile
LONG = 300  # characters of a line of evidence
INDEX = "index"  # the name that stands for the index alone
QUIET = "--log-level=40"
TIMEOUT = 600  # seconds a cell may take
STALE = "**STALE**: `rbd figures` could not draw this again; numbers, table and figure are of earlier times"
OLD = "STALE: "  # before the verdict of such evidence
NEEDS = {"claim", "evidence", "profile", "command", "records", "commits"}  # of all evidence
LISTS = {"evidence", "records", "commits"}  # of lines
TEXTS = ("claim", "verdict", "number", "paper", "profile", "command", *LISTS)
KINDS = dict.fromkeys(TEXTS, str) | {"runs": int, "expected": int, "stale": bool}  # of the parts of evidence
BLANK = "# Results\n\n<!-- evidence -->\n<!-- /evidence -->\n"
DETAILS = "details.md"  # beside the index
ABOVE_DETAILS = """# Details of the results

What each notebook computed from the records. `rbd figures` writes this page; [the index](README.md) has the verdicts."""
HEAD = ("question", "verdict", "our number", "paper", "see", "command")
CLAIMS = "verdicts"  # the notebook whose table of claims opens the index
PARTS = {  # profile -> heading of its table
    "paper": "Full scale: profile paper, full data",
    "quick": "Small scale: profile quick, 5,000 images, 5 to 20 epochs",
    "–": "Time and memory, without training",
}


@dataclass(frozen=True)
class Drawn:
    """How a notebook ended."""

    name: str
    state: str  # "drawn", "empty" (there is nothing at all to draw, which was allowed) or "failed"
    seconds: float
    message: str = ""


def list_notebooks(analysis: Path = ANALYSIS) -> list[str]:
    """The names of the notebooks. Raises ValueError where there are none, as outside a clone of the repository."""
    names = sorted(p.stem for p in analysis.glob("*.ipynb"))
    if not names:
        raise ValueError(f"{analysis}: no notebooks; a clone of the repository has them: `pip install -e .[suite]` in it")
    return names


def choose(names: Iterable[str], analysis: Path = ANALYSIS) -> list[str]:
    """The notebooks of these names, all where none is given.

    Raises:
        ValueError: a name is unknown.
        RuntimeError: what runs notebooks is not installed.
    """
    there, wanted = list_notebooks(analysis), list(dict.fromkeys(names))
    if unknown := [n for n in wanted if n not in (*there, INDEX)]:
        raise ValueError(f"NAME: got {', '.join(map(repr, unknown))}, allowed {', '.join((*there, INDEX))}")
    chosen = [n for n in wanted if n != INDEX] if wanted else there
    if chosen and (lacking := [name for name in NEEDED if find_spec(name) is None]):
        raise RuntimeError(f"notebooks need {', '.join(lacking)}: run `pip install -e .[suite]` in the clone")
    return chosen


def draw(name: str, profile: str, results: str | os.PathLike[str], allow_missing: bool = False,
         analysis: Path = ANALYSIS) -> Drawn:  # fmt: skip
    """Run one notebook. A failure is returned, not raised.

    Its evidence is marked as stale until it has written new one, which it does last: so whatever ends it, even a signal,
    leaves no new figure beside numbers that seem as new.
    """
    from nbclient.exceptions import CellControlSignal, CellExecutionError, DeadKernelError

    start, state, message = time.perf_counter(), "drawn", ""
    parameters = {"profile": profile, "results": str(Path(results).resolve()), "allow_missing": allow_missing}
    unmarked = _mark_stale(Path(results) / "tables" / f"{name_files(name, profile)}.json")
    try:
        _execute(analysis / f"{name}.ipynb", parameters)
    except CellExecutionError as error:
        state, message = "failed", f"{error.ename}: {error.evalue}"
        if error.ename == "Nothing" and allow_missing:
            state, message = "empty", error.evalue
    except (CellControlSignal, DeadKernelError, RuntimeError, ValueError, OSError) as error:
        state, message = "failed", f"{type(error).__name__}: {error}"
    if state != "drawn" and unmarked:
        state, message = "failed", f"{message}; {unmarked}"
    return Drawn(name, state, time.perf_counter() - start, message)


def name_files(name: str, profile: str) -> str:
    """What the files of a notebook are called."""
    return name if name in ONE else f"{name}-{profile}"


def _mark_stale(path: Path) -> str:
    """Mark evidence, if there is any; returns why that failed, if it did."""
    try:
        if path.exists():
            tables.write_evidence(path.parents[1], path.stem, _read_evidence(path) | {"stale": True})
    except (ValueError, OSError) as error:
        return str(error)
    return ""


def _execute(path: Path, parameters: dict[str, Any]) -> None:
    import nbformat
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import KernelSpec
    from nbclient import NotebookClient

    class ThisInterpreter(AsyncKernelManager):  # the spec "python3" of a user may name another one
        kernel_spec = KernelSpec(argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", QUIET])

    book = nbformat.read(path, as_version=4)
    cells = [cell for cell in book.cells if "parameters" in cell.metadata.get("tags", ())]
    if len(cells) != 1:
        raise ValueError(f"{path}: got {len(cells)} cells tagged 'parameters', allowed exactly one")
    cells[0].source = "\n".join(f"{name} = {value!r}" for name, value in parameters.items())
    where = {"metadata": {"path": str(path.parent)}}
    client = NotebookClient(book, ThisInterpreter(), timeout=TIMEOUT, resources=where)
    _run(client)


def _run(client: NotebookClient) -> None:
    """As client.execute does, in a thread: in the main one it takes SIGINT and SIGTERM for itself, and then fails itself."""
    loop = asyncio.new_event_loop()
    cells = loop.create_task(_run_cells(client))
    with closing(loop), ThreadPoolExecutor(1) as pool:
        try:
            ended = pool.submit(loop.run_until_complete, cells)
            wait_for_one([ended])
        except KeyboardInterrupt:
            loop.call_soon_threadsafe(cells.cancel)
            raise
        ended.result()


async def _run_cells(client: NotebookClient) -> None:
    """Whatever happens, no kernel is left behind."""
    assert client.km
    try:
        await client.async_start_new_kernel(env={**os.environ, "MPLBACKEND": "agg"})
        await client.async_start_new_kernel_client()
        for index, cell in enumerate(client.nb.cells):
            await client.async_execute_cell(cell, index)
        await client.km.shutdown_kernel()
    finally:
        await client.km.shutdown_kernel(now=True)  # at once, where it has not ended
        if client.kc:
            client.kc.stop_channels()
        left = asyncio.all_tasks() - {asyncio.current_task()}  # of nbclient: it does not end them all
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)


# ---------------------------------------------------------------- index


def index(results: str | os.PathLike[str], names: Iterable[str], analysis: Path = ANALYSIS) -> str:
    """Markdown: the rules, and a table of verdicts for each profile.

    From what the notebooks wrote into <results>/tables/*.json; a notebook without such a file has a row "not run".

    Raises:
        ValueError: such a file is damaged (it is named).
    """
    root = Path(results)
    found = _read_all(root)
    questions = {name_experiment(stem): e["claim"] for stem, e in found.items()}
    for name in (n for n in names if n not in (*ONE, CLAIMS)):
        for profile in ("paper", "quick"):
            found.setdefault(name_files(name, profile), _describe_unrun(name, profile, questions, analysis))
    asked = [item for item in _order(found) if name_experiment(item[0]) != CLAIMS]
    parts = [*_quote_claims(root), findings.RULES]
    for profile, heading in PARTS.items():
        here = [(stem, e) for stem, e in asked if e["profile"] == profile]
        rows = [_cells(root, *item) for item in sorted(here, key=lambda item: item[1].get("verdict") == findings.NOT_RUN)]
        parts += [f"### {heading}", tables.markdown(HEAD, rows).removesuffix("\n")] if rows else []
    return "\n\n".join(parts)


def details(results: str | os.PathLike[str]) -> str:
    """Markdown: all that the notebooks have told, a section for each notebook and profile. Raises as `index` does."""
    root = Path(results)
    sections = [_describe(root, stem, e) for stem, e in _order(_read_all(root)) if e["evidence"]]
    return "\n\n".join([ABOVE_DETAILS, *sections]) + "\n"


def _read_all(root: Path) -> dict[str, dict[str, Any]]:
    """The evidence of every notebook, by the stem of its files."""
    return {path.stem: _read_evidence(path) for path in sorted((root / "tables").glob("*.json"))}


def _order(found: dict[str, dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """By question."""
    return sorted(found.items(), key=lambda item: (item[1]["claim"], item[0]))


def _quote_claims(root: Path) -> list[str]:
    """The rules and the table of the paper's claims, at full scale where there is one, and a link to that of its numbers."""
    folder = root / "tables"
    texts = [p.read_text("utf-8").strip() for n in ("paper", "quick") if (p := folder / f"claims-{n}.md").exists()]
    quoted = [part for text in texts[:1] for part in reversed(text.split("\n\n", 1))]  # the note goes above the table
    links = {"verdicts-paper": "Each number of table 1 and figure 1", "sparse-paper": "Countsketch beside signs and SGD"}
    told = [f"{name}: [table](tables/{stem}.md)." for stem, name in links.items() if (folder / f"{stem}.md").exists()]
    return ["### The paper's claims", *quoted, *[" ".join(told)] * bool(told)] if quoted else []


def name_experiment(stem: str) -> str:
    """ "table1-quick" -> "table1"."""
    return stem.removesuffix("-quick").removesuffix("-paper")


def _read_evidence(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
        _check_evidence(content)
        return content
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: not the evidence of a notebook: {error}; remove it and run `rbd figures`") from error


def _check_evidence(content: Any) -> None:
    """Raise ValueError or TypeError if it lacks something, or something is of another type."""
    needed = NEEDS | {"expected"} if "runs" in content else NEEDS
    if missing := needed - set(content):
        raise ValueError(f"missing {', '.join(sorted(missing))}")
    for name in [name for name in KINDS if name in content]:
        kind, value, is_list = KINDS[name], content[name], name in LISTS
        if is_list != isinstance(value, list) or any(type(v) is not kind for v in (value if is_list else [value])):
            raise ValueError(f"{name}: got {value!r}, allowed {'a list of ' * is_list}{kind.__name__}")


def _describe_unrun(name: str, profile: str, questions: dict[str, str], analysis: Path) -> dict[str, Any]:
    """The question shown for a notebook without evidence: that of the other profile, else its heading."""
    path = analysis / f"{name}.ipynb"
    heading = json.loads(path.read_text("utf-8"))["cells"][0]["source"][0].strip("# \n") if path.exists() else name
    command = f"rbd sweep {name} --profile {profile}"
    return {"claim": questions.get(name, heading), "profile": profile, "evidence": [], "command": command,
            "verdict": findings.NOT_RUN}  # fmt: skip


def _cells(root: Path, stem: str, evidence: dict[str, Any]) -> tuple[str, ...]:
    """A row: one short phrase or number in each cell."""
    verdict = OLD * evidence.get("stale", False) + (evidence.get("verdict") or "–")
    if "runs" in evidence and evidence["runs"] < evidence["expected"]:
        verdict += f" ({evidence['runs']} of {evidence['expected']} runs)"
    kinds = {"figures": "png", "tables": "md"} if evidence["evidence"] else {}
    files = [path for folder, kind in kinds.items() for path in _find_files(root, stem, folder, kind)]
    links = [tables.link(_shorten(stem, path), path.relative_to(root).as_posix()) for path in files]
    links += [f"[details]({DETAILS}#{stem})"] if evidence["evidence"] else []
    return (evidence["claim"], verdict, evidence.get("number") or "–", evidence.get("paper") or "–", ", ".join(links) or "–",
            f"`{evidence['command']}`")  # fmt: skip


def _find_files(root: Path, stem: str, folder: str, kind: str) -> list[Path]:
    """Figures or tables of an experiment in its profile, and those without a profile."""
    name, other = name_experiment(stem), {"quick": "-paper", "paper": "-quick"}.get(stem.rpartition("-")[2], "?")
    paths = sorted((root / folder).glob(f"{name}*.{kind}"), key=lambda p: (len(p.stem), p.stem))
    return [p for p in paths if (p.stem + "-").startswith(f"{name}-") and not p.stem.endswith(other)]


def _shorten(stem: str, path: Path) -> str:
    """ "table1-quick", figures/table1-methods-quick.png -> "figure: methods"."""
    part = name_experiment(path.stem).removeprefix(name_experiment(stem)).strip("-")
    return ("figure" if path.suffix == ".png" else "table") + (f": {part}" if part else "")


def _describe(root: Path, stem: str, evidence: dict[str, Any]) -> str:
    """A section with all the evidence of a notebook in its profile."""
    runs = f" ({evidence['runs']} of {evidence['expected']} runs)" if "runs" in evidence else ""
    lines = [STALE] * evidence.get("stale", False) + evidence["evidence"]
    records = ", ".join(tables.link(r, r) for r in evidence["records"])
    pictures = [f"![{p.stem}]({p.relative_to(root).as_posix()})" for p in _find_files(root, stem, "figures", "png")]
    made = [f"Command: `{evidence['command']}`.", f"Records: {records}.", f"Commits: {', '.join(evidence['commits'])}."]
    return "\n\n".join([
        f"## {stem}", f"{evidence['claim']}{runs}", *pictures, "\n".join(map(_itemize, lines)),
        (" " if len(records) <= LONG else "\n").join(made),
    ])  # fmt: skip


def _itemize(line: str) -> str:
    """A line of evidence as an item of a list; a long one as a list of its own."""
    return f"- {line}" if len(line) <= LONG else "- " + line.replace(": ", ":\n  - ", 1).replace("; ", "\n  - ")


def write_index(results: str | os.PathLike[str], names: Iterable[str]) -> Path | None:
    """Put the index between its marks in <results>/README.md, which is made where there is none, and write the details.

    Nothing is written where there is neither a README.md nor evidence; the result is then None.

    Raises:
        ValueError: the marks are not there, or the evidence of a notebook is damaged.
    """
    root, path = Path(results), Path(results) / "README.md"
    if not path.exists() and not any((root / "tables").glob("*.json")):
        return None
    report.insert_into(path, {"evidence": lambda: index(results, names)}, BLANK)
    store.update(root / DETAILS, details(results), "details of the results")
    return path
