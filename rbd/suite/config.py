"""RunConfig: everything that determines a training run, as one frozen value with an id. No torch.

The paper's learning rates (arXiv 2011.04720) hold for one compartment, d = 250, and directions scaled by 1/√D. With K > 1
compartments, each scaled by 1/√D_k, the best rate is another one: give `lr` then.
"""

from __future__ import annotations

import json
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Collection, Mapping
from dataclasses import Field, asdict, dataclass, field, fields
from hashlib import sha256
from math import sqrt
from numbers import Real
from sys import float_info
from typing import Any

from rbd.partition import by_ratio, parse
from rbd.suite import paper

MODELS = ("fc", "cnn", "resnet8", "resnet32", "fc200", "lenet")
DATA = ("mnist", "fmnist", "cifar10", "mnist-embedded", "fmnist-embedded")
METHODS = ("sgd", "rbd", "fpd", "nes", "rbd-nes", "subspace-adam", "subspace-sgd")
DISTRIBUTIONS = ("normal", "uniform", "rademacher", "countsketch")
PARTITIONS = "whole, by_layer, by_tensor, even:K (integer K >= 1), by_ratio:R (number R >= 1)"
LARGEST = 2**32 - 1  # seeds, rows and steps are 32-bit words of Philox

DEFAULTS: dict[str, dict[str, Any]] = {  # method -> the fields it uses, of those that not every method does
    "sgd": {},
    "rbd": {"partition": "whole", "dim": 250, "distribution": "rademacher", "redraw": 1},
    "fpd": {"partition": "whole", "dim": 250, "distribution": "rademacher"},
    "nes": {"dim": 250, "distribution": "rademacher", "sigma": None},  # see default_sigma
    "rbd-nes": {"dim": 250, "distribution": "rademacher", "sigma": None},
    "subspace-adam": {"partition": "whole", "dim": 250, "distribution": "rademacher"},
    "subspace-sgd": {"partition": "whole", "dim": 250, "distribution": "rademacher"},
}
VARIANTS: dict[str, tuple[str, ...]] = {  # method -> what several workers may share, its default first; see rbd.distributed
    "sgd": ("ddp",),
    "rbd": ("common", "bases", "directions", "shares"),
    "fpd": ("common", "bases", "directions", "shares"),
}
PARTS = ("none", "crop", "brightness", "mirror")  # of the augmentation; brightness is for grey images, mirror for colour
SWITCH = {"sgd": "rbd", "rbd": "sgd"}  # method -> the one that takes over after `switch` epochs
OPTIONAL = {name for used in DEFAULTS.values() for name in used} | {"workers", "variant", "switch", "then_lr", "augment"}
DIM = 250  # d that the paper's rates of rbd and fpd are for
ADAM_LR = 0.001  # of Adam in all D parameters
SGD_LR = {  # model -> SGD's rate, where the paper has none: ResNet-8's was searched, the others are guesses
    "resnet8": 0.5, "resnet32": 0.5, "fc200": 0.125, "lenet": 0.0625,
}  # fmt: skip
SIZES = paper.SIZES | {  # D; the paper has no ResNets on grey images
    ("resnet8", 1): 78_042, ("resnet32", 1): 466_906,
    ("fc200", 3): 656_810, ("lenet", 3): 62_006, **{(model, 1): size for model, size in paper.LI_SIZES.items()},
}  # fmt: skip


def _option(kind: type, default: Any, help: str, choices: tuple[str, ...] = (), low: int = 1, hint: str = "") -> Any:
    return field(default=default, metadata={"kind": kind, "help": help, "choices": choices, "low": low, "hint": hint})


@dataclass(frozen=True)
class RunConfig:
    """One run, checked and resolved: None becomes the method's default, and stays None where a method lacks the field.

    Raises ValueError naming the field, its value, and what is allowed or what it does not go with.
    """

    model: str = _option(str, "fc", "network", MODELS)
    data: str = _option(str, "mnist-embedded", "data set; -embedded: the small subset of real images", DATA)
    method: str = _option(str, "rbd", "training method", METHODS)
    dim: int | None = _option(int, None, "total number of random directions d; not for sgd or by_ratio:R")
    partition: str | None = _option(str, None, f"parts with a basis each; not for sgd, nes, rbd-nes: {PARTITIONS}")
    distribution: str | None = _option(str, None, "distribution of the basis entries; not for sgd", DISTRIBUTIONS)
    redraw: int | None = _option(int, None, "steps between draws of a basis, for rbd", hint=" (drawn once: method fpd)")
    sigma: float | None = _option(float, None, "length of a perturbation in parameter space, for nes and rbd-nes")
    workers: int | None = _option(int, None, "processes that train together, for sgd, rbd and fpd")
    variant: str | None = _option(str, None, "what workers share", VARIANTS["sgd"] + VARIANTS["rbd"])
    lr: float | None = _option(float, None, "learning rate, for the mean loss of a batch and directions of unit length")
    epochs: int = _option(int, 100, "passes over the training images")
    batch_size: int = _option(int, 32, "images per mini-batch")
    seed: int = _option(int, 0, "seed of the initial parameters, batches and bases", low=0)
    switch: int | None = _option(int, None, "epochs after which rbd goes on as sgd, or sgd as rbd")
    then_lr: float | None = _option(float, None, "learning rate after the switch")
    augment: str | None = _option(str, None, "augmentation: none, or crop, brightness or mirror alone", PARTS)

    def __post_init__(self) -> None:
        values = {f: getattr(self, f.name) for f in fields(self)}
        given = {f.name: _check(f, v) for f, v in values.items() if v is not None or f.default is not None}
        model, data, method = given["model"], given["data"], given["method"]
        used = DEFAULTS[method] | _resolve_sigma(given) | _resolve_workers(given)
        used |= _resolve_switch(given) | _resolve_augment(given)
        for name in sorted(OPTIONAL & given.keys() - used.keys()):
            raise ValueError(f"{name}={given[name]!r} does not apply to method {method!r}")
        resolved = {"lr": default_lr(model, data, method, _find_dim(given), given.get("sigma"))} | used | given
        if str(resolved.get("partition")).startswith("by_ratio"):  # d_k = max(⌈D_k/R⌉, 10)
            if "dim" in given:
                raise ValueError(f"dim={self.dim} is not supported with partition={self.partition!r}, which decides it")
            del resolved["dim"]
        for f in values:
            object.__setattr__(self, f.name, resolved.get(f.name))

    def at(self, epoch: int) -> RunConfig:
        """The run that goes on after a number of epochs: this one, or the one that takes over, without the switch."""
        if self.switch is None:
            return self
        over = epoch >= self.switch
        method, lr = (SWITCH[self.method], self.then_lr) if over else (self.method, self.lr)
        own = {name: getattr(self, name) for name in DEFAULTS[method]}
        own |= {name: getattr(self, name) for name in ("epochs", "batch_size", "seed", "augment")}
        return RunConfig(self.model, self.data, method, lr=lr, **own)

    def canonical(self) -> str:
        """All fields that apply, as JSON with sorted keys and no spaces: equal configs give equal text."""
        applying = {name: value for name, value in asdict(self).items() if value is not None}
        return json.dumps(applying, sort_keys=True, separators=(",", ":"), allow_nan=False)

    @property
    def id(self) -> str:
        """First 16 hex digits of the SHA-256 of `canonical()`."""
        return sha256(self.canonical().encode()).hexdigest()[:16]

    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> RunConfig:
        """The inverse of `asdict` and `canonical`. Raises ValueError naming missing and unknown keys, or the bad field."""
        whole = cls.complete(d)
        check_keys("config", whole, [f.name for f in fields(cls)])
        return cls(**whole)

    @staticmethod
    def complete(d: Any) -> Any:
        """d with None for the fields that it lacks, so that old records stay readable when fields are added."""
        return dict.fromkeys(sorted(OPTIONAL)) | dict(d) if isinstance(d, Mapping) else d


def find_size(model: str, data: str) -> int:
    """D, the number of parameters."""
    return SIZES[model, 3 if data == "cifar10" else 1]


def _resolve_sigma(given: dict[str, Any]) -> dict[str, Any]:
    """The length of a perturbation, if the method perturbs."""
    model, data, method = (given[name] for name in ("model", "data", "method"))
    return {"sigma": default_sigma(model, data, method)} if "sigma" in DEFAULTS[method] else {}


def _resolve_workers(given: dict[str, Any]) -> dict[str, Any]:
    """The fields, with their defaults, that a run uses because several workers do it; none if one process does."""
    workers, variant, allowed = given.get("workers"), given.get("variant"), VARIANTS.get(given["method"], ())
    if not allowed:
        return {}
    if workers is None and variant is not None:
        raise ValueError(f"variant={variant!r} needs workers")
    if variant is not None and variant not in allowed:
        raise ValueError(f"variant: got {variant!r}, allowed {', '.join(allowed)} with method {given['method']!r}")
    if workers is not None and "switch" in given:
        raise ValueError(f"workers={workers} is not supported with switch")
    return {} if workers is None else {"workers": None, "variant": allowed[0]}


def _resolve_switch(given: dict[str, Any]) -> dict[str, Any]:
    """The fields, with their defaults, that a run uses because another method takes over; none if it does not."""
    if "switch" not in given or given["method"] not in SWITCH:
        return {}
    then = SWITCH[given["method"]]
    if given["switch"] >= given["epochs"]:
        raise ValueError(f"switch: got {given['switch']}, allowed 1 ... {given['epochs'] - 1} (before the last epoch)")
    then_lr = default_lr(given["model"], given["data"], then, _find_dim(given))
    return DEFAULTS[then] | {"switch": None, "then_lr": then_lr}


def _resolve_augment(given: dict[str, Any]) -> dict[str, Any]:
    """augment, if it is given and such images have it; all of the augmentation otherwise."""
    allowed = [part for part in PARTS if part != ("brightness" if given["data"] == "cifar10" else "mirror")]
    if given.get("augment", "none") not in allowed:
        raise ValueError(f"augment: got {given['augment']!r}, allowed {', '.join(allowed)} with data {given['data']!r}")
    return {"augment": None} if "augment" in given else {}


def _find_dim(given: dict[str, Any]) -> int:
    """The d of default rates. With by_ratio:R that of one layer of D parameters, as there is no network here: about D/R."""
    name, ratio = parse(given.get("partition", "whole"))
    if name == "by_ratio":
        return by_ratio((("all", find_size(given["model"], given["data"])),), ratio).dim
    return given.get("dim", DIM)


def default_lr(model: str, data: str, method: str, dim: int = DIM, sigma: float | None = None) -> float:
    """The learning rate of a run that names none; an embedded subset takes that of its full set.

    The paper's where it has one: SGD's, and those of RBD and FPD at d = 250. Elsewhere theirs are SGD's times √(D/d): since
    E ‖ΦᵀΦ g‖² = (d/D) ‖g‖², an update is then as long as SGD's. A step of SGD in the coordinates moves the parameters as a
    step of FPD does, so it takes FPD's rate. A step of Adam moves each of d coordinates by about η, so θ by η √d: its rate
    is 0.001 √(D/d), at which θ moves as far as by Adam at 0.001 in all D parameters. NES and RBD-NES take RBD's rate at
    d = 250 times σ/0.01, for perturbations of length σ: in the released configuration NES has RBD's rate, and σ = 0.01.
    """
    size = find_size(model, data)
    if method in paper.SIGMA:
        return paper.scale_learning_rate(default_lr(model, data, "rbd"), sigma or default_sigma(model, data, method))
    if method == "subspace-adam":
        return _lengthen(ADAM_LR, size, dim)
    method = "fpd" if method == "subspace-sgd" else method
    known = paper.find_learning_rate(model, data, method) if method == "sgd" or dim == DIM else None
    if known is not None:
        return known
    return SGD_LR[model] if method == "sgd" else _lengthen(default_lr(model, data, "sgd"), size, dim)


def _lengthen(lr: float, size: int, dim: int) -> float:
    """The rate in d directions at which an update is as long as at lr in all D parameters: lr √(D/d), three digits."""
    return float(f"{lr * sqrt(size / dim):.3g}")


def default_sigma(model: str, data: str, method: str) -> float:
    """The length σ √D of a perturbation whose entries have the released code's standard deviation σ.

    Much shorter ones change the loss less than mini-batches differ, so that NES, with one for each direction, learns
    nothing.
    """
    return paper.compute_length(method, find_size(model, data))


def check_keys(what: str, d: Any, names: Collection[str]) -> None:
    """Raise ValueError unless `d` is a mapping with exactly the keys `names`."""
    if not hasattr(d, "keys"):
        raise ValueError(f"{what}: got {d!r}, allowed an object with the keys {', '.join(names)}")
    for problem, keys in (("missing", set(names) - set(d)), ("unknown", set(d) - set(names))):
        if keys:
            got = ", ".join(sorted(map(repr, keys)))
            raise ValueError(f"{what}: {problem} {got}, allowed exactly {', '.join(names)}")


def _check(f: Field[Any], value: Any) -> Any:
    """`value` as the field keeps it (1 -> 1.0 for a float), or ValueError saying what is allowed."""
    kind, choices, low = f.metadata["kind"], f.metadata["choices"], f.metadata["low"]
    if isinstance(value, Real) and hasattr(value, "item"):
        value = value.item()  # NumPy's number as a plain one
    if choices:
        allowed, good = ", ".join(choices), isinstance(value, str) and value in choices
    elif kind is int:
        allowed, good = f"an integer {low} ... {LARGEST}", type(value) is int and low <= value <= LARGEST
    elif kind is float:
        allowed = "a finite number > 0"
        good = isinstance(value, (int, float)) and type(value) is not bool and 0 < value <= float_info.max
    else:
        allowed, good = PARTITIONS, isinstance(value, str) and (spelling := _partition(value)) is not None
    if not good:
        raise ValueError(f"{f.name}: got {value!r}, allowed {allowed}{f.metadata['hint']}")
    return spelling if f.name == "partition" else kind(value)


def _partition(text: str) -> str | None:
    """The one spelling of a partition (by_ratio:60.0 -> by_ratio:60), so that equal runs get equal ids; else None."""
    try:
        name, number = parse(text)
    except ValueError:
        return None
    return f"{name}:{int(number) if number == int(number) else number}" if ":" in text else name


GROUPS = {  # in the help; the other fields belong to the method
    "what is trained, and for how long": ("model", "data", "epochs", "batch_size", "seed", "augment"),
    "method": (),
    "several workers": ("workers", "variant"),
    "a change of the method": ("switch", "then_lr"),
}


def add_arguments(parser: ArgumentParser) -> None:
    """Add one `--field-name` per field of RunConfig; a value that is not allowed ends with argparse's usage error."""
    groups = {title: parser.add_argument_group(title) for title in GROUPS}
    of = {name: groups[title] for title, names in GROUPS.items() for name in names}
    for f in fields(RunConfig):
        flag, choices = "--" + f.name.replace("_", "-"), f.metadata["choices"] or None
        help = f"{f.metadata['help']} (default: {_default(f)})"
        of.get(f.name, groups["method"]).add_argument(flag, type=_argument(f), choices=choices, default=f.default, help=help)


def from_arguments(namespace: Namespace) -> RunConfig:
    """The RunConfig of parsed arguments. Raises ValueError where fields do not fit each other."""
    return RunConfig(**{f.name: getattr(namespace, f.name) for f in fields(RunConfig)})


def _default(f: Field[Any]) -> str:
    if f.name in ("workers", "variant"):
        return "this process alone" if f.name == "workers" else "common, or ddp for sgd"
    if f.name == "sigma":
        return ", ".join(f"{sigma:g} √D for {method}" for method, sigma in paper.SIGMA.items())
    values = {method: used[f.name] for method, used in DEFAULTS.items() if f.name in used} or {"all": f.default}
    texts = [f"{value} for {method}" for method, value in values.items()]
    default = ", ".join(texts) if len(set(values.values())) > 1 else str(values.popitem()[1])
    own = "the paper's for d = 250, else SGD's rate times √(D/d)"
    return {"lr": own, "then_lr": own, "switch": "never", "augment": "all parts"}.get(f.name, default)


def _argument(f: Field[Any]) -> Any:
    def parse(text: str) -> Any:
        try:
            value = f.metadata["kind"](text)
        except ValueError:
            value = text  # of the wrong kind: the check says what is allowed
        try:
            return _check(f, value)
        except ValueError as error:
            raise ArgumentTypeError(str(error)) from None

    return parse
