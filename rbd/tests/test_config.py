from __future__ import annotations

import argparse
import itertools
import json
import math
import subprocess
import sys
from dataclasses import FrozenInstanceError, asdict, fields
from pathlib import Path

import numpy as np
import pytest

from rbd import distributed, distribution
from rbd.suite import config, models, paper
from rbd.suite.config import RunConfig

NAMES = [f.name for f in fields(RunConfig)]


def test_fields_and_defaults():
    assert NAMES == ["model", "data", "method", "dim", "partition", "distribution", "redraw", "sigma", "workers", "variant",
                     "lr", "epochs", "batch_size", "seed", "switch", "then_lr", "augment"]
    assert asdict(RunConfig()) == {
        "model": "fc", "data": "mnist-embedded", "method": "rbd", "dim": 250, "partition": "whole",
        "distribution": "rademacher", "redraw": 1, "sigma": None, "workers": None, "variant": None, "lr": 1.0,
        "epochs": 100, "batch_size": 32, "seed": 0, "switch": None, "then_lr": None, "augment": None,
    }


@pytest.mark.parametrize("method, resolved", [  # dim, partition, distribution, redraw, sigma
    ("sgd", (None, None, None, None, None)),
    ("rbd", (250, "whole", "rademacher", 1, None)),
    ("fpd", (250, "whole", "rademacher", None, None)),
    ("nes", (250, None, "rademacher", None, 3.19)),
    ("rbd-nes", (250, None, "rademacher", None, 0.638)),
    ("subspace-adam", (250, "whole", "rademacher", None, None)),
    ("subspace-sgd", (250, "whole", "rademacher", None, None)),
])
def test_each_method_gets_its_fields(method, resolved):
    c = RunConfig(method=method)
    assert (c.dim, c.partition, c.distribution, c.redraw, c.sigma) == resolved


@pytest.mark.parametrize("model, data", [("fc", "mnist"), ("fc", "cifar10"), ("cnn", "mnist"), ("resnet8", "cifar10")])
@pytest.mark.parametrize("method, sigma", [("nes", 0.01), ("rbd-nes", 0.002)])  # of the entries, in the released code
def test_nes_perturbs_each_parameter_as_far_as_the_released_code(model, data, method, sigma):
    """So the length is σ √D; and η/σ is RBD's rate over 0.01, as inherited there, whatever length is asked for."""
    c, rate = RunConfig(model, data, method), RunConfig(model, data).lr
    assert c.sigma == pytest.approx(sigma * math.sqrt(config.find_size(model, data)), rel=5e-3)
    assert c.lr / c.sigma == pytest.approx(rate / 0.01, rel=5e-3)
    assert RunConfig(model, data, method, sigma=0.01).lr == rate
    assert RunConfig(model, data, method, lr=0.3).lr == 0.3
    assert paper.find_learning_rate(model, data, method) in (c.lr, None)  # None: not known there
    assert (paper.find_learning_rate(model, data, method) is None) == (method == "rbd-nes" or model == "resnet8")


def test_workers_have_a_variant_and_one_process_has_none():
    assert (RunConfig().workers, RunConfig().variant) == (None, None)
    assert [RunConfig(method=m, workers=3).variant for m in ("rbd", "fpd", "sgd")] == ["common", "common", "ddp"]
    assert '"variant":"common","workers":3' in RunConfig(workers=3).canonical()


def test_names_are_those_of_the_modules_that_use_them():
    assert config.VARIANTS["rbd"] == config.VARIANTS["fpd"] == distributed.VARIANTS
    assert config.MODELS == models.NAMES
    assert tuple(distribution.DISTRIBUTIONS) == config.DISTRIBUTIONS


@pytest.mark.parametrize("model, data, method, lr", [  # the paper's table, read once more
    ("fc", "mnist", "rbd", 1.0), ("fc", "fmnist", "fpd", 0.5), ("fc", "cifar10", "rbd", 0.25),
    ("cnn", "mnist", "fpd", 0.0625), ("cnn", "fmnist", "rbd", 0.125), ("cnn", "cifar10", "fpd", 0.125),
    ("fc", "mnist", "sgd", 0.125), ("fc", "fmnist", "sgd", 0.25), ("fc", "cifar10", "sgd", 0.0078),
    ("cnn", "mnist", "sgd", 0.03125), ("cnn", "fmnist", "sgd", 0.0625), ("cnn", "cifar10", "sgd", 0.0156),
    ("fc", "fmnist-embedded", "sgd", 0.25), ("cnn", "mnist-embedded", "rbd", 0.0625),
])
def test_paper_learning_rates(model, data, method, lr):
    assert RunConfig(model=model, data=data, method=method).lr == lr
    assert RunConfig(model=model, data=data, method=method, lr=3).lr == 3.0


def test_default_rates_with_a_ratio_are_for_about_the_ratio_of_parameters():
    """0.125 √(D/d) with d = ⌈D/R⌉, at least 10; not the paper's rate for d = 250. Explicit rates keep their ids."""
    assert [RunConfig(partition=f"by_ratio:{ratio}").lr for ratio in (1, 60, 2.5, 1e5)] == [0.125, 0.968, 0.198, 12.6]
    assert RunConfig(method="subspace-adam", partition="by_ratio:60").lr == 0.00774  # 0.001 √60
    assert RunConfig(method="sgd", switch=3, partition="by_ratio:60").then_lr == 0.968
    record = RunConfig("resnet8", "fmnist-embedded", partition="by_ratio:10", epochs=5, lr=2.0)  # in networks-quick
    assert record.id == "2aa0235e696a90cf"


def test_every_combination_has_a_rate():
    ids = {RunConfig(model=m, data=d, method=k).id for m, d, k in itertools.product(
        config.MODELS, config.DATA, config.METHODS)}
    assert len(ids) == 6 * 5 * 7


def test_numbers_of_numpy_become_plain_ones():
    """The same run under the same id; json would refuse NumPy's integers."""
    plain = RunConfig(dim=9, redraw=2, epochs=3, batch_size=8, seed=1, lr=0.5)
    made = RunConfig(dim=np.int64(9), redraw=np.uint8(2), epochs=np.int16(3), batch_size=np.uint64(8), seed=np.int32(1),
                     lr=np.float32(0.5))  # fmt: skip
    assert made == plain
    assert made.canonical() == plain.canonical()
    assert RunConfig(method="nes", sigma=np.float64(0.5)).id == RunConfig(method="nes", sigma=0.5).id
    assert [type(value) for value in asdict(made).values()] == [type(value) for value in asdict(plain).values()]


BAD = [
    ({"model": "vgg"}, ("model: got 'vgg'", "fc, cnn, resnet8, resnet32, fc200, lenet")),
    ({"model": None}, ("model: got None", "fc, cnn")),
    ({"data": "svhn"}, ("data: got 'svhn'", "mnist, fmnist, cifar10, mnist-embedded, fmnist-embedded")),
    ({"method": "adam"}, ("method: got 'adam'", "sgd, rbd, fpd, nes, rbd-nes, subspace-adam, subspace-sgd")),
    ({"method": "subspace-adam", "redraw": 1}, ("redraw=1 does not apply to method 'subspace-adam'",)),
    ({"method": "subspace-sgd", "workers": 2}, ("workers=2 does not apply to method 'subspace-sgd'",)),
    ({"method": "subspace-adam", "switch": 3}, ("switch=3 does not apply to method 'subspace-adam'",)),
    ({"method": ["sgd"]}, ("method: got ['sgd']", "sgd, rbd")),
    ({"dim": 0}, ("dim: got 0", "an integer 1 ... 4294967295")),
    ({"dim": -3}, ("dim: got -3", "an integer 1 ...")),
    ({"dim": True}, ("dim: got True", "an integer")),
    ({"dim": np.True_}, ("dim: got ", "an integer")),
    ({"dim": np.float64(250)}, ("dim: got 250.0", "an integer")),
    ({"lr": np.float32("inf")}, ("lr: got inf", "finite")),
    ({"dim": 250.0}, ("dim: got 250.0", "an integer")),
    ({"dim": "250"}, ("dim: got '250'", "an integer")),
    ({"dim": 2**32}, ("dim: got 4294967296", "4294967295")),
    ({"partition": "thirds"}, ("partition: got 'thirds'", "whole, by_layer, by_tensor, even:K", "by_ratio:R")),
    ({"partition": "even"}, ("partition: got 'even'", "even:K")),
    ({"partition": "even:0"}, ("partition: got 'even:0'", "integer K >= 1")),
    ({"partition": "even:2.5"}, ("partition: got 'even:2.5'", "integer K >= 1")),
    ({"partition": "whole:3"}, ("partition: got 'whole:3'", "whole")),
    ({"partition": "by_ratio:0.5"}, ("partition: got 'by_ratio:0.5'", "number R >= 1")),
    ({"partition": "by_ratio:inf"}, ("partition: got 'by_ratio:inf'", "number R >= 1")),
    ({"partition": "by_ratio:nan"}, ("partition: got 'by_ratio:nan'", "number R >= 1")),
    ({"partition": 3}, ("partition: got 3", "whole")),
    ({"partition": "by_ratio:60", "dim": 250}, ("dim=250 is not supported with partition='by_ratio:60'",)),
    ({"distribution": "cauchy"}, ("distribution: got 'cauchy'", "normal, uniform, rademacher")),
    ({"redraw": 0}, ("redraw: got 0", "an integer 1 ...", "fpd")),
    ({"method": "sgd", "redraw": 1}, ("redraw=1 does not apply to method 'sgd'",)),
    ({"method": "sgd", "dim": 250}, ("dim=250 does not apply to method 'sgd'",)),
    ({"method": "sgd", "distribution": "normal"}, ("distribution='normal' does not apply to method 'sgd'",)),
    ({"method": "fpd", "redraw": 2}, ("redraw=2 does not apply to method 'fpd'",)),
    ({"method": "nes", "partition": "whole"}, ("partition='whole' does not apply to method 'nes'",)),
    ({"method": "rbd", "sigma": 0.01}, ("sigma=0.01 does not apply to method 'rbd'",)),
    ({"method": "nes", "sigma": 0.0}, ("sigma: got 0.0", "a finite number > 0")),
    ({"workers": 0}, ("workers: got 0", "an integer 1 ...")),
    ({"method": "nes", "workers": 2}, ("workers=2 does not apply to method 'nes'",)),
    ({"variant": "shares"}, ("variant='shares' needs workers",)),
    ({"workers": 2, "variant": "gossip"}, ("variant: got 'gossip'", "ddp, common, bases, directions, shares")),
    ({"workers": 2, "variant": "ddp"}, ("variant: got 'ddp'", "common, bases, directions, shares with method 'rbd'")),
    ({"method": "sgd", "workers": 2, "variant": "shares"}, ("variant: got 'shares'", "allowed ddp with method 'sgd'")),
    ({"augment": "mirror"}, ("augment: got 'mirror'", "none, crop, brightness with data 'mnist-embedded'")),
    ({"augment": "brightness", "data": "cifar10"}, ("augment: got 'brightness'", "none, crop, mirror with data 'cifar10'")),
    ({"augment": "all"}, ("augment: got 'all'",)),
    ({"switch": 0}, ("switch: got 0", "an integer 1 ...")),
    ({"switch": 100}, ("switch: got 100", "1 ... 99 (before the last epoch)")),
    ({"method": "fpd", "switch": 3}, ("switch=3 does not apply to method 'fpd'",)),
    ({"then_lr": 0.5}, ("then_lr=0.5 does not apply to method 'rbd'",)),
    ({"method": "sgd", "then_lr": 0.5}, ("then_lr=0.5 does not apply to method 'sgd'",)),
    ({"method": "sgd", "switch": 3, "sigma": 0.1}, ("sigma=0.1 does not apply to method 'sgd'",)),
    ({"lr": -1}, ("lr: got -1", "a finite number > 0")),
    ({"lr": float("nan")}, ("lr: got nan", "finite")),
    ({"lr": float("inf")}, ("lr: got inf", "finite")),
    ({"lr": 10**400}, ("lr: got 1000", "finite")),
    ({"lr": True}, ("lr: got True", "a finite number > 0")),
    ({"lr": "1"}, ("lr: got '1'", "a finite number > 0")),
    ({"epochs": 0}, ("epochs: got 0", "an integer 1 ...")),
    ({"epochs": None}, ("epochs: got None", "an integer 1 ...")),
    ({"batch_size": 1.5}, ("batch_size: got 1.5", "an integer 1 ...")),
    ({"seed": -1}, ("seed: got -1", "an integer 0 ... 4294967295")),
    ({"seed": 2**32}, ("seed: got 4294967296", "4294967295")),
]


@pytest.mark.parametrize("values, parts", BAD, ids=[str(values) for values, _ in BAD])
def test_bad_input_is_named(values, parts):
    with pytest.raises(ValueError) as error:
        RunConfig(**values)
    assert all(part in str(error.value) for part in parts), error.value


def test_extremes_are_allowed():
    c = RunConfig(seed=2**32 - 1, dim=2**32 - 1, redraw=2**32 - 1, lr=5e-324)
    assert RunConfig.from_dict(asdict(c)) == c


def test_canonical_and_id_never_change():
    text = ('{"batch_size":32,"data":"mnist-embedded","dim":250,"distribution":"normal","epochs":100,"lr":1.0,'
            '"method":"rbd","model":"fc","partition":"whole","redraw":1,"seed":0}')
    assert RunConfig(distribution="normal").canonical() == text
    assert RunConfig(distribution="normal").id == "ab6c3999089ebe70"  # results are filed under ids: a change orphans all
    assert RunConfig(method="nes", seed=3, distribution="normal", sigma=0.01, lr=1.0).id == "0fab972afb97045b"


def test_fields_that_came_later_change_no_id():
    """Of a run whose record was committed before they came (results/runs/table1-quick)."""
    run = RunConfig(dim=250, distribution="rademacher", epochs=20, lr=4.0)
    assert run.id == "13284833b8fb3ae5" and "switch" not in run.canonical()


def test_switch_takes_over_with_the_fields_of_both_methods():
    there = RunConfig(method="sgd", switch=30, dim=9)  # its rates: the defaults of both
    assert (there.partition, there.distribution, there.redraw) == ("whole", "rademacher", 1)
    assert (there.lr, there.then_lr) == (0.125, 13.3)  # 0.125 √(101,770/9)
    assert there.at(0) == there.at(29) == RunConfig(method="sgd")
    assert there.at(30) == there.at(100) == RunConfig(dim=9)
    back = RunConfig(switch=1, then_lr=0.25, partition="by_ratio:60")
    assert (back.at(0), back.at(1)) == (RunConfig(partition="by_ratio:60"), RunConfig(method="sgd", lr=0.25))
    assert RunConfig().at(7) == RunConfig()
    for c in (there, back):
        assert RunConfig.from_dict(RunConfig.complete(json.loads(c.canonical()))) == c


def test_equal_runs_have_equal_ids():
    assert RunConfig(lr=1) == RunConfig(lr=1.0) == RunConfig() and RunConfig(lr=1).id == RunConfig().id
    assert RunConfig(dim=250, redraw=1, partition="whole", distribution="rademacher").id == RunConfig().id
    assert RunConfig(partition="by_ratio:60.0") == RunConfig(partition="by_ratio:60")
    assert RunConfig(partition="by_ratio:60").partition == "by_ratio:60"
    assert RunConfig(partition="even:08").id == RunConfig(partition="even:8").id
    assert RunConfig(partition="by_ratio:2.5").partition == "by_ratio:2.5"
    backwards = dict(reversed(asdict(RunConfig()).items()))
    assert next(iter(backwards)) == "augment" and RunConfig.from_dict(backwards).id == RunConfig().id


def test_every_field_changes_the_id():
    others = {"model": "cnn", "data": "mnist", "method": "fpd", "dim": 251, "partition": "by_layer", "lr": 0.1,
              "distribution": "uniform", "redraw": 2, "epochs": 99, "batch_size": 31, "seed": 1}
    ids = {RunConfig(**{name: value}).id for name, value in others.items()}
    ids |= {RunConfig().id, RunConfig(method="nes").id, RunConfig(method="nes", sigma=0.02).id}
    ids |= {RunConfig(workers=2).id, RunConfig(workers=3).id, RunConfig(workers=2, variant="bases").id}
    ids |= {RunConfig(switch=9).id, RunConfig(switch=9, then_lr=2.0).id, RunConfig(method="sgd", switch=9).id}
    ids |= {RunConfig(augment="none").id, RunConfig(augment="crop").id}
    more = {"sigma", "workers", "variant", "switch", "then_lr", "augment"}
    assert set(others) | more == set(NAMES) and len(ids) == len(others) + 11


@pytest.mark.parametrize("c", [
    RunConfig(lr=0.1), RunConfig(method="sgd", lr=1 / 3), RunConfig(method="nes", sigma=1e-7),
    RunConfig(model="resnet8", data="cifar10", partition="by_ratio:60"),
])
def test_round_trip(c):
    again = RunConfig.from_dict(json.loads(c.canonical()))
    assert again == c and again.id == c.id and hash(again) == hash(c)


def test_from_dict_names_keys():
    with pytest.raises(ValueError, match="config: unknown 'momentum', allowed exactly model, data"):
        RunConfig.from_dict(asdict(RunConfig()) | {"momentum": 0.9})
    with pytest.raises(ValueError, match="config: missing 'lr', 'seed'"):
        RunConfig.from_dict({k: v for k, v in asdict(RunConfig()).items() if k not in ("lr", "seed")})
    with pytest.raises(ValueError, match="config: got 3, allowed an object"):
        RunConfig.from_dict(3)


def test_frozen():
    with pytest.raises(FrozenInstanceError):
        RunConfig().seed = 1


@pytest.fixture
def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="rbd")
    config.add_arguments(parser)
    return parser


def test_arguments(parser):
    assert config.from_arguments(parser.parse_args([])) == RunConfig()
    line = "--model cnn --data cifar10 --dim 500 --partition even:4 --redraw 2 --lr 1 --batch-size 64 --seed 7"
    assert config.from_arguments(parser.parse_args(line.split())) == RunConfig(
        model="cnn", data="cifar10", dim=500, partition="even:4", redraw=2, lr=1.0, batch_size=64, seed=7)


@pytest.mark.parametrize("line, parts", [
    ("--dim many", ("--dim", "'many'", "an integer 1 ... 4294967295")),
    ("--dim 2.5", ("--dim", "'2.5'", "an integer")),
    ("--lr fast", ("--lr", "'fast'", "a finite number > 0")),
    ("--lr nan", ("--lr", "nan", "a finite number > 0")),
    ("--redraw 0", ("--redraw", "0", "fpd")),
    ("--seed -1", ("--seed", "-1", "an integer 0 ...")),
    ("--model vgg", ("--model", "'vgg'", "resnet32")),
    ("--partition even:x", ("--partition", "'even:x'", "even:K")),
])
def test_bad_arguments(parser, capsys, line, parts):
    with pytest.raises(SystemExit) as stop:
        parser.parse_args(line.split())
    message = capsys.readouterr().err
    assert stop.value.code == 2 and all(part in message for part in parts), message


def test_help_shows_every_field_with_default(parser):
    text = " ".join(parser.format_help().split())
    assert all("--" + name.replace("_", "-") in text for name in NAMES)
    assert text.count("(default: ") == len(NAMES) and "None" not in text
    assert "(default: 0.01 √D for nes, 0.002 √D for rbd-nes)" in text and "(default: 250)" in text
    assert all(f.metadata["help"] for f in fields(RunConfig))


def test_loads_nothing_but_the_standard_library_and_rbd():
    folder = Path(config.__file__).parent
    code = ("import runpy, sys; before = set(sys.modules); runpy.run_path(sys.argv[1], run_name='config');"
            "print(*{m.split('.')[0] for m in set(sys.modules) - before} - sys.stdlib_module_names)")
    command = [sys.executable, "-c", code, str(folder / "config.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) <= {"rbd"}
