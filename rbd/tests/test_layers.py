"""Who may import whom: downward only, read from the sources, and what a bare ``import rbd`` may load."""

from __future__ import annotations

import ast
import json
import re
import sys
from pathlib import Path

import pytest

import rbd

ROOT = Path(rbd.__file__).parents[1]

LAYERS = {  # modules may import from their own layer or a lower one, lazily or not
    "rbd.philox": 1, "rbd.distribution": 1,
    "rbd.compartment": 2,
    "rbd.kernels": 3, "rbd.kernels.compiled": 3, "rbd.kernels.simd": 3, "rbd.kernels.jit": 3,
    "rbd.kernels.reference": 3, "rbd.kernels.cpu": 3, "rbd.kernels.gpu": 3, "rbd.kernels.team": 3,
    "rbd.kernels.countsketch_cpu": 3, "rbd.kernels.countsketch_gpu": 3, "rbd.kernels.memory": 3,
    "rbd.kernels.in_place": 3,
    "rbd.basis": 4, "rbd.partition": 4,
    "rbd.distributed": 5, "rbd.distributed.variants": 5, "rbd.distributed.exchange": 5, "rbd.distributed.fsdp": 5,
    "rbd.distributed.ddp_hook": 5, "rbd.distributed.launch": 5,
    "rbd.optim": 6, "rbd.subspace": 6,
    "rbd.suite": 7, "rbd.suite.paper": 7, "rbd.suite.looks": 7, "rbd.suite.config": 7, "rbd.suite.record": 7,
    "rbd.suite.store": 7, "rbd.suite.wire": 7, "rbd.suite.verdicts": 7, "rbd.suite.bootstrap": 7,
    "rbd.suite.models": 7, "rbd.suite.datasets": 7, "rbd.suite.images": 7, "rbd.suite.images_cpu": 7,
    "rbd.suite.batches": 7, "rbd.suite.heap": 7,
    "rbd.suite.tables": 8, "rbd.suite.findings": 9,
    "rbd.suite.replay": 7, "rbd.suite.train": 8, "rbd.suite.checkpoint": 8, "rbd.suite.report": 8,
    "rbd.suite.intrinsic": 8,
    "rbd.suite.rates": 9, "rbd.suite.cost": 9, "rbd.suite.experiment": 9,
    "rbd.suite.job": 10, "rbd.suite.cluster": 10, "rbd.suite.streams": 10, "rbd.suite.executor": 10,
    "rbd.suite.measurement": 10,
    "rbd.suite.experiments": 10,
    "rbd.suite.dimension": 11, "rbd.suite.figures": 11, "rbd.suite.cli": 11, "rbd.__main__": 11,
}  # fmt: skip
LIBRARY = {name for name, layer in LAYERS.items() if layer <= 6}
EXPERIMENTS = sorted(f"rbd.suite.experiments.{path.stem}" for path in (ROOT / "rbd/suite/experiments").glob("[!_]*.py"))
LAYERS |= dict.fromkeys(EXPERIMENTS, LAYERS["rbd.suite.experiments"])
NUMPY_ONLY = ("rbd.philox", "rbd.distribution")
FOR_ANALYSIS = ("rbd.suite.paper", "rbd.suite.looks", "rbd.suite.store", "rbd.suite.tables", "rbd.suite.config",
                "rbd.suite.verdicts", "rbd.suite.findings", "rbd.suite.bootstrap", "rbd.suite.intrinsic",
                "rbd.suite.record")  # fmt: skip  # what analysis/ may import
MEASURING = ("rbd.suite.experiments.landscape", "rbd.suite.experiments.orthogonality",
             "rbd.suite.experiments.as_released",
             "rbd.suite.experiments.compression")  # fmt: skip  # torch, when they measure
NO_TORCH = (*NUMPY_ONLY, "rbd.partition", *FOR_ANALYSIS[:-1], "rbd.suite.report", "rbd.suite.figures",
            "rbd.suite.rates", "rbd.suite.cost", "rbd.suite.experiment", "rbd.suite.executor", "rbd.suite.cli",
            "rbd.suite.measurement", "rbd.suite.dimension",
            *(name for name in EXPERIMENTS if name not in MEASURING))  # fmt: skip
PUBLIC = "rbd"  # the public names: __version__ for all, the rest lazily


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def modules() -> dict[str, Path]:
    """Every module of the package but the tests."""
    files = [p for p in (ROOT / "rbd").rglob("*.py") if "tests" not in p.parts]
    return {module_of(p): p for p in files}


def imported(source: str, package: str) -> set[str]:
    """All modules that a source names in import statements and in import_module calls, at any depth.

    ``from rbd import kernels`` means rbd.kernels; ``from rbd import __version__`` means rbd itself; an import_module of
    an f-string counts as all modules that begin like it.
    """
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: -node.level + 1 or None] if node.level else []
            base = ".".join([*parts, *([node.module] if node.module else [])])
            inside = {f"{base}.{alias.name}" for alias in node.names} & set(LAYERS)
            found |= inside or {base}
        elif isinstance(node, ast.Call) and "import" in ast.unparse(node.func) and node.args:
            found |= _named(node.args[0])
    return found


def _named(argument: ast.expr) -> set[str]:
    if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
        return {argument.value}
    if isinstance(argument, ast.JoinedStr) and isinstance(argument.values[0], ast.Constant):
        return {name for name in LAYERS if name.startswith(argument.values[0].value)}
    return set()


def imports() -> dict[str, set[str]]:
    found = {}
    for name, path in modules().items():
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        found[name] = imported(path.read_text(encoding="utf-8"), package)
    return found


def of_package(names: set[str]) -> set[str]:
    return {n for n in names if n == PUBLIC or n.startswith(PUBLIC + ".")}


def test_the_parser_sees_every_kind_of_import():
    source = """
import a.b, c
from rbd import kernels, __version__
from rbd import __version__ as v
from .simd import fma
from . import reference
def f():
    from rbd.optim import RBD
    import_module("rbd.suite.datasets")
    importlib.import_module(f"rbd.kernels.{backend}")
if TYPE_CHECKING:
    from rbd.suite.train import train
"""
    assert imported(source, "rbd.kernels") == {
        "a.b", "c", "rbd", "rbd.kernels", "rbd.kernels.simd", "rbd.kernels.reference", "rbd.optim", "rbd.suite.datasets",
        "rbd.kernels.cpu", "rbd.kernels.compiled", "rbd.kernels.gpu", "rbd.kernels.jit", "rbd.kernels.countsketch_cpu",
        "rbd.kernels.countsketch_gpu", "rbd.kernels.in_place", "rbd.kernels.memory", "rbd.kernels.team", "rbd.suite.train",
    }  # fmt: skip


def test_every_module_has_a_layer():
    assert set(modules()) - {PUBLIC} <= set(LAYERS)


def test_imports_go_down():
    up = [f"{name} imports {other}" for name, others in imports().items() if name != PUBLIC
          for other in of_package(others) if other != PUBLIC and LAYERS.get(other, 99) > LAYERS[name]]  # fmt: skip
    assert not up


def test_imports_inside_a_layer_make_no_circle():
    """So that every module can be imported first."""
    left = {name: of_package(others) - {PUBLIC, name} for name, others in imports().items() if name != PUBLIC}
    backends = ("reference", "cpu", "gpu", "countsketch_cpu", "countsketch_gpu")
    left["rbd.kernels"] -= {f"rbd.kernels.{name}" for name in backends}  # when first asked for
    while ready := [name for name, others in left.items() if not others & set(left)]:
        for name in ready:
            del left[name]
    assert not left


def test_the_library_never_imports_the_suite():
    """But for the command, `python -m rbd`, which is the suite's."""
    found = imports()
    for name in LIBRARY & set(found):
        assert not {other for other in found[name] if other.startswith("rbd.suite")}, name


def test_the_library_needs_torch_numpy_and_numba_alone():
    """llvmlite comes with Numba, and Triton with torch where there are GPUs."""
    allowed = {*sys.stdlib_module_names, "rbd", "torch", "numpy", "numba", "llvmlite", "triton"}
    found = imports()
    for name in (LIBRARY & set(found)) | {PUBLIC, "rbd.__main__"}:
        assert {other.split(".")[0] for other in found[name]} <= allowed, name


@pytest.mark.parametrize("name", ["models", "datasets", "batches", "config", "record"])
def test_networks_data_and_configurations_do_without_the_library(name):
    """Beside the definition of the entries, and how θ is cut."""
    allowed = {"rbd.philox", "rbd.distribution", "rbd.compartment", "rbd.partition"}
    assert not imports()[f"rbd.suite.{name}"] & (LIBRARY - allowed)


def test_compartments_need_nothing():
    """Below the kernels, the standard library: torch and the distributions for type checking only, not asked here."""
    others = {name for name in imports()["rbd.compartment"] if name.split(".")[0] not in sys.stdlib_module_names}
    assert others == {"torch", "rbd.distribution"}


def test_experiments_say_what_is_run_and_know_nothing_of_how():
    how = {"rbd.suite.job", "rbd.suite.executor", "rbd.suite.cluster", "rbd.suite.cli"}
    found = imports()
    assert len(EXPERIMENTS) > 15 and not [name for name in (*EXPERIMENTS, "rbd.suite.experiment") if found[name] & how]


def test_backends_never_import_each_other():
    kinds = {"reference": ("reference",), "cpu": ("cpu", "countsketch_cpu"), "gpu": ("gpu", "countsketch_gpu")}
    backends, found = {f"rbd.kernels.{name}" for names in kinds.values() for name in names}, imports()
    for names in kinds.values():
        own = {f"rbd.kernels.{name}" for name in names}
        for name in own & set(found):
            assert not found[name] & (backends - own)
            assert "rbd.kernels" not in found[name]  # nor what picks one of them


@pytest.mark.parametrize("name", sorted(NO_TORCH))
def test_modules_that_do_without_torch(name):
    """Not even lazily."""
    assert name in modules()
    others = {other.split(".")[0] for other in imports()[name]}
    assert not others & {"torch", "torchvision", "numba", "triton", "ray"}
    if name in NUMPY_ONLY:
        assert others <= {"__future__", "dataclasses", "math", "numpy", "rbd"}


def test_numba_stays_in_the_cpu_kernels_and_triton_in_those_for_gpus():
    numba = {f"rbd.kernels.{name}" for name in ("cpu", "countsketch_cpu", "simd", "jit")} | {"rbd.suite.images_cpu"}
    homes = {"numba": numba, "llvmlite": {"rbd.kernels.simd"}, "triton": {"rbd.kernels.gpu"}}
    for library, home in homes.items():
        users = {n for n, others in imports().items() if library in {other.split(".")[0] for other in others}}
        assert users <= home, library


def analysis_sources() -> dict[Path, str]:
    """Modules and notebooks of analysis/."""
    sources = {path: path.read_text(encoding="utf-8") for path in sorted((ROOT / "analysis").glob("*.py"))}
    for path in sorted((ROOT / "analysis").glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        sources[path] = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    return sources


def test_analysis_imports_only_the_modules_meant_for_it():
    sources = analysis_sources()
    assert len(sources) > 15
    for path, source in sources.items():
        names = imported(source, "")
        assert of_package(names) <= set(FOR_ANALYSIS), path
        assert "torch" not in {name.split(".")[0] for name in names}, path


def test_analysis_loads_no_torch(fresh_python):
    """Whatever its modules and notebooks import, and what those import in turn."""
    names = set().union(*(imported(source, "") for source in analysis_sources().values()))
    path, statements = str(ROOT / "analysis"), "\n".join(f"import {name}" for name in sorted(names - {"__future__"}))
    script = f"import sys\nsys.path.insert(0, {path!r})\n{statements}\nprint(*{{m.split('.')[0] for m in sys.modules}})"
    loaded = set(fresh_python(script).split())
    assert {"rbd", "load", "seaborn"} <= loaded and not loaded & {"torch", "torchvision", "numba", "triton", "ray"}


@pytest.mark.parametrize(("statement", "absent"), [
    ("import rbd; rbd.__version__", "torch numba numpy torchvision triton"),
    ("import rbd.philox, rbd.distribution", "torch numba torchvision triton"),
    ("import rbd.compartment, rbd.partition, rbd.suite.config", "torch numba numpy torchvision triton"),
    ("import rbd.suite.record, rbd.suite.store, rbd.suite.rates, rbd.suite.experiment, rbd.suite.executor, rbd.suite.cli",
     "torch numba numpy torchvision triton matplotlib ray"),
    ("import rbd.suite.cli", "filelock tqdm safetensors pandas seaborn"),  # so that --help works where only pip is
    ("from rbd.suite import experiment; experiment.experiments()", "torch numba numpy torchvision triton matplotlib ray"),
    ("from rbd import RBD, FPD, NES, Basis, Subspace", "numba torchvision ray matplotlib"),  # numba: first product
])  # fmt: skip
def test_what_an_import_loads(fresh_python, statement, absent):
    script = f"import sys\n{statement}\nprint(*{{m.split('.')[0] for m in sys.modules}})"
    assert not set(fresh_python(script).split()) & set(absent.split())


def test_public_names(fresh_python):
    """dir(), import * and unknown names behave as in any package."""
    script = """
import rbd
from rbd import *
print(sorted(rbd.__all__), RBD.__name__, FPD.__name__, NES.__name__, Basis.__name__, __version__ == rbd.__version__)
try:
    rbd.nothing
except AttributeError as error:
    print(error)
"""
    assert fresh_python(script).splitlines() == [
        "['Basis', 'FPD', 'NES', 'RBD', 'Subspace', '__version__'] RBD FPD NES Basis True",
        "module 'rbd' has no attribute 'nothing'",
    ]


def test_type_hints_are_shipped():
    """Type checkers read the hints of a package that has this file; a wheel has it if the build is told so."""
    assert (ROOT / "rbd/py.typed").is_file()
    (files,) = re.findall(r'^"rbd" = \[(.*)\]$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert '"py.typed"' in files
