"""RBD, FPD and NES as torch optimizers. The update is a pure function; the optimizers only store (seed, step)."""

from __future__ import annotations

import math
import re
import sys
import warnings
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from numbers import Real

import torch
from torch import Tensor

from rbd import kernels
from rbd.basis import WORD, as_list, check_integer, check_word, forget_casts, is_number
from rbd.compartment import BasisSpec, Compartment
from rbd.distributed.exchange import CHECK, Workers, digest
from rbd.distributed.fsdp import (
    FLATTENED,
    Columns,
    columns,
    is_flattened,
    is_sharded,
    local_pieces,
    sharded_directions,
    sharded_workers,
)
from rbd.distributed.variants import VARIANTS, Direction, Part
from rbd.distribution import distribution as distribution_of
from rbd.kernels.memory import is_expanded, is_ordinary, is_watched
from rbd.partition import Partition, check_ordered, parse
from rbd.partition import partition as partition_of
from rbd.philox import STREAM_VERSION

SETTINGS = ("stream_version", "step", "dim", "partition", "distribution", "seed", "redraw")  # that workers share
OF_TORCH = {"params", "param_names", "name", "initial_lr", "max_lr", "min_lr", "swa_lr"}  # keys of groups
CHOICES = ("dim", "partition", "distribution", "seed", "redraw", "sigma")  # that are checked again when they are changed
WRAPPERS = re.compile(r"^module\.|\b(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")  # in parameters' names


def rbd_direction(
    g: Tensor, partition: Partition, distribution: str = "rademacher", seed: int = 0, stream: int = 0,
    step: int | Tensor = 0, out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The gradient seen through random bases: u = Φᵀ Φ g, compartment by compartment (arXiv 2011.04720).

    Args:
        g: (D,) real floating-point gradient.
        partition: cuts g into compartments, each with a basis of its own.
        distribution: of the entries, a name as in RBD.
        seed, stream, step: of the bases, integers in 0 ... 2**32 - 1; step may also be a tensor, () int64 on g's device.
        out: (D,) for u, of its dtype, overwritten.

    Returns:
        u (D,) and the coordinates c = Φ g (d,), float64 for float64 g, else float32; without derivatives, which the products
        of a ``Basis`` have.

    Raises:
        TypeError, ValueError: an argument is out of its range, or g or out has another shape, dtype or device.
        RuntimeError: there are no kernels for the device.
    """
    plain = type(seed) is type(stream) is type(step) is int
    if not (plain and 0 <= seed < WORD and 0 <= stream < WORD and 0 <= step < WORD):  # check_word would take longer
        seed, stream = check_word("seed", seed), check_word("stream", stream)
        step = step if isinstance(step, Tensor) else check_word("step", step)
    spec = BasisSpec(partition.compartments, distribution_of(distribution), seed, stream, step)
    c = kernels.project(g, spec)  # (d,)
    return kernels.expand(c, spec, out), c  # (D,), (d,)


def centred_ranks(losses: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Ranks of (d,) losses, spread evenly from -1/2 (the least) to 1/2; equal ones keep their order, a single one has 0.

    dtype: of the ranks, by default that of the losses.
    """
    ranks = torch.empty_like(losses, dtype=dtype)
    ranks[losses.argsort(stable=True)] = torch.arange(len(losses), dtype=ranks.dtype, device=losses.device)
    return (ranks - (len(losses) - 1) / 2) / max(len(losses) - 1, 1)


class _NoState(defaultdict):
    """The ``Optimizer.state`` of an optimizer that keeps nothing for a parameter.

    ``bool()`` is True although it is empty: torch.distributed.checkpoint runs a dummy step() to fill a state that is false.
    """

    def __bool__(self) -> bool:
        return True


class _RandomBases(torch.optim.Optimizer):
    """Base class: parameter groups as vectors with partitions, and a step number (in device memory if capturable).

    A group's "size" is a list, the number of values of each of its parameters (states of rbd 0.1 have the sum).
    """

    _capturable = False
    _frozen: tuple[tuple[str, Tensor], ...] = ()  # parameters left out of the groups; empty after the warning
    _checked: list[tuple] | None = None  # the choices of every group that were checked last

    def __init__(self, params, defaults: dict):
        check_ordered(params)  # torch would turn a set into a list, in arbitrary order
        super().__init__(params, defaults | {"step": 0, "stream_version": STREAM_VERSION})
        self.state = _NoState(dict)

    def __getstate__(self) -> dict:
        return super().__getstate__() | {"_capturable": self._capturable, "_frozen": self._frozen}

    def add_param_group(self, param_group: dict) -> None:
        """Add a group. Parameters that need no gradient when added stay out of the basis and are never moved.

        Raises:
            TypeError, ValueError: a setting is out of its range, or belongs to another optimizer and is switched on.
        """
        if not isinstance(param_group, dict):
            raise TypeError(f"param_group must be a dict, got a {type(param_group).__name__}")
        if "params" not in param_group:
            raise ValueError('a parameter group needs its parameters, under the key "params"')
        check_ordered(param_group["params"])
        self._check_keys(param_group)
        given = as_list(param_group["params"])
        named = _as_named(given)
        trained = [p for p, (_, tensor) in zip(given, named) if tensor.requires_grad]
        if not trained:
            raise ValueError("a parameter group needs at least one parameter that requires a gradient")
        super().add_param_group(param_group | {"params": trained})
        self._accept_last_group()
        added = {id(p) for p in self.param_groups[-1]["params"]}
        self._frozen = tuple((name, p) for name, p in (*self._frozen, *named) if id(p) not in added)

    def _accept_last_group(self) -> None:
        """Check the group that was just added, or remove it again."""
        group = self.param_groups[-1]
        group["size"] = [p.numel() for p in group["params"]]
        try:
            self._check(group)
        except (TypeError, ValueError):
            del self.param_groups[-1]
            raise
        self._place_step(group)

    def _place_step(self, group: dict) -> None:
        step = int(group["step"])
        group["step"] = torch.tensor(step, device=group["params"][0].device) if self._capturable else step

    @cached_property
    def _keys(self) -> set[str]:
        """Names of all that a group may have."""
        return (self.defaults.keys() | OF_TORCH | {"size"}) - {"differentiable"}  # which torch adds when it loads a state

    def _check_keys(self, group: dict) -> None:
        """Refuse a setting of another optimizer, such as weight_decay, unless it is switched off: it would be ignored.

        Not redraw=0 for NES, say: there it does not mean that something is off.
        """
        foreign = group.keys() - self._keys
        if unknown := [name for name in group if name in foreign and (name in CHOICES or not _is_off(group[name]))]:
            own = [name for name in self.defaults if name not in ("step", "stream_version", "differentiable")]
            raise ValueError(f"parameter group: got {', '.join(unknown)}, allowed params, {', '.join(own)}")

    def _check_changes(self) -> None:
        """Check what was written into the groups since the last step, as by hand."""
        for group in self.param_groups:
            if not group.keys() <= self._keys:
                self._check_keys(group)
            lr, step = group["lr"], group["step"]
            if not (type(lr) is float and type(step) is int and 0 <= lr < math.inf and step >= 0):
                self._check_numbers(group, there=not self._capturable)
        if [tuple(map(group.get, CHOICES)) for group in self.param_groups] != self._checked:
            for group in self.param_groups:
                self._check_choices(group)
            self._checked = [tuple(map(group.get, CHOICES)) for group in self.param_groups]

    def _warn_of_unfrozen(self) -> None:
        """Warn, once, if parameters that were left out of the groups now need a gradient."""
        if names := [name for name, p in self._frozen if p.requires_grad]:
            self._frozen = ()
            shown = ", ".join(names[:5]) + ", ..." * (len(names) > 5)
            warnings.warn(f"{type(self).__name__} does not move {len(names)} of the parameters given ({shown}): they did "
                          f"not require a gradient when it was made, but do now; to train them, call "
                          f"optimizer.add_param_group({{'params': ...}})", stacklevel=_find_caller())  # fmt: skip

    def _is_moving(self) -> bool:
        """Whether any rate is not 0: a step at the rate 0 moves nothing and is not counted."""
        return any(float(group["lr"]) for group in self.param_groups)

    def _is_moving_there(self) -> bool | Tensor:
        """``_is_moving`` without reading a learning rate from device memory."""
        rates = [group["lr"] for group in self.param_groups]
        if any(rate for rate in rates if not isinstance(rate, Tensor)):
            return True
        kept = [rate.reshape(()) != 0 for rate in rates if isinstance(rate, Tensor)]
        return reduce(torch.logical_or, kept) if kept else False

    def _check_numbers(self, group: dict, there: bool = True) -> None:
        """Check lr and step; there: also those that are tensors, which may be in device memory."""
        lr, step = group["lr"], group["step"]
        if (there or not isinstance(lr, Tensor)) and not (is_number(lr) and self._least_rate(group) <= float(lr) < math.inf):
            raise ValueError(f"lr: got {lr!r}, allowed 0 <= lr < infinity, a number or a tensor of one")
        if not isinstance(lr, (Tensor, int)):
            group["lr"] = float(lr)
        if (there or not isinstance(step, Tensor)) and not _is_count(step):
            raise ValueError(f"step: got {step!r}, allowed 0, 1, 2, ...")

    @staticmethod
    def _least_rate(group: dict) -> float:
        """0, or what rounding makes of it in a scheduler: LinearLR to 0 may end at -1e-17 times the first rate."""
        return -1e-6 * abs(float(group.get("initial_lr", 0)))

    def _check(self, group: dict) -> None:
        self._check_numbers(group)
        for p in group["params"]:
            if not p.is_floating_point() or torch.finfo(p.dtype).bits < 16:
                raise TypeError(f"params: got a parameter of {p.dtype}, allowed real floating-point dtypes of 16 to 64 bits")
            if p.layout != torch.strided:
                raise TypeError(f"params: got a parameter of layout {p.layout}, allowed torch.strided (dense values)")
            if is_expanded(p):
                raise ValueError("params: got an expanded parameter, whose values share places in memory: clone it")
        if len(devices := {str(p.device) for p in group["params"]}) > 1:
            raise ValueError(f"params: got parameters on {', '.join(sorted(devices))}, allowed one device in a group")
        self._check_choices(group)

    def _check_choices(self, group: dict) -> None:
        """Check what names the bases; reads no device memory."""
        group["seed"] = check_word("seed", group["seed"])  # a plain int, so that torch.load accepts it with weights_only
        if group["dim"] is not None:
            group["dim"] = check_integer("dim", group["dim"])
        if "redraw" in group:
            group["redraw"] = check_word("redraw", group["redraw"])
        group["distribution"] = distribution_of(group["distribution"]).name
        if "partition" in group:
            parse(group["partition"])
            group["partition"] = str(group["partition"])
        self._cut(group)

    def partition(self, group: int = 0) -> Partition:
        """The partition of a parameter group; the numbers of its compartments continue those of the groups before."""
        first = sum(len(self._cut(g).compartments) for g in self.param_groups[:group])
        return self._cut(self.param_groups[group]).renumber(first)

    @staticmethod
    def _cut(group: dict) -> Partition:
        names = group.get("param_names") or [""] * len(group["params"])
        layout = tuple((name, p.numel()) for name, p in zip(names, group["params"]))
        return partition_of(group.get("partition", "whole"), layout, group["dim"])

    def state_dict(self) -> dict:
        """The groups' settings and step numbers, without tensors that later steps change."""
        for group in self.param_groups:
            group["size"] = [p.numel() for p in group["params"]]  # one may have been given other data
        state = super().state_dict()
        for group in state.get("param_groups", ()):  # a hook may have put them elsewhere
            group |= {name: value.detach().clone() for name, value in group.items() if isinstance(value, Tensor)}
        return state

    def load_state_dict(self, state_dict: dict) -> None:
        """Resume from a ``state_dict()``: the next step uses the bases that the saved optimizer would have used.

        Hooks of ``register_load_state_dict_pre_hook`` may adapt the state before it is checked.

        Raises:
            ValueError: it was saved with another version of the random stream, by another optimizer, or for other groups,
                names or sizes of parameters.
        """
        super().load_state_dict(state_dict)  # which calls __setstate__
        for group in self.param_groups:
            self._place_step(group)

    def __setstate__(self, state: dict) -> None:
        """Called by pickle, copy, and ``load_state_dict`` after its hooks; a state that does not fit changes nothing."""
        if "param_groups" in self.__dict__:
            for group, saved in zip(self.param_groups, state["param_groups"]):
                self._check_saved(group, saved)
        super().__setstate__(state)
        self.state = _NoState(dict, self.state)

    def _check_saved(self, group: dict, saved: dict) -> None:
        """Raise ValueError unless a saved group, into which torch has put this one's params, fits this one."""
        if (got := saved.get("stream_version")) != STREAM_VERSION:
            whose = "an optimizer that is not rbd's" if got is None else "another version of rbd, with other bases,"
            raise ValueError(f"state_dict: got stream_version {got}, allowed {STREAM_VERSION}: {whose} saved it")
        own = self.defaults.keys() - {"differentiable"} | {"size"}  # torch adds "differentiable" when it loads a state
        if lacking := own - saved.keys():
            raise ValueError(f"state_dict has a group without {', '.join(sorted(lacking))}: another optimizer saved it")
        sizes, theirs = [p.numel() for p in group["params"]], saved["size"]
        values = theirs if isinstance(theirs, int) else sum(theirs)  # rbd 0.1 saved the sum alone
        if values != sum(sizes):
            raise ValueError(f"state_dict has {values} parameters in a group, this optimizer {sum(sizes)}")
        here, there = _label(group, sizes), _label(saved, sizes if isinstance(theirs, int) else theirs)
        for i, ((name, size), (own_name, own_size)) in enumerate(zip(there, here)):
            if size != own_size or (own_name and name != own_name):
                raise ValueError(f"state_dict: parameter {i} of a group is {name} with {size} values, here {own_name} with "
                                 f"{own_size}; a register_load_state_dict_pre_hook may adapt the state")  # fmt: skip
        saved["size"] = sizes
        self._check_keys(saved)
        self._check(saved)

    def _spec(self, index: int) -> BasisSpec:
        """The name of a group's bases at its present step."""
        group, compartments = self.param_groups[index], self.partition(index).compartments
        return BasisSpec(compartments, distribution_of(group["distribution"]), group["seed"], 0, self._basis_step(group))

    @staticmethod
    def _basis_step(group: dict) -> int | Tensor:
        """Number of the basis that the present step uses: it goes up every ``redraw`` steps; always 0 if redraw is 0."""
        redraw, step = group.get("redraw", 1), group["step"]
        if isinstance(step, Tensor) and redraw:  # the kernels take its lowest 32 bits
            return step if redraw == 1 else step // redraw
        return step // redraw % WORD if redraw else 0


def _is_count(value: object) -> bool:
    """Whether it is 0, 1, 2, ..., or a tensor of one such number."""
    return is_number(value) and bool(0 <= value < math.inf and int(value) == value)  # type: ignore[operator, call-overload]


def _is_off(value: object) -> bool:
    """Whether a setting of another optimizer is switched off: None, False or 0."""
    if isinstance(value, Tensor):
        return value.numel() == 1 and not value
    return value is None or (isinstance(value, Real) and value == 0)


def _as_named(params: list) -> list[tuple[str, Tensor]]:
    """(name, tensor) of every parameter; one given without a name is described by its shape."""
    for p in params:
        if not isinstance(tensor := p[1] if isinstance(p, tuple) else p, Tensor):
            raise TypeError(f"params must be tensors, as of model.parameters(), but one is a {type(tensor).__name__}")
        if torch.nn.parameter.is_lazy(tensor):
            raise ValueError("params: got a parameter of a lazy module that has no shape yet: run the model once before")
        if is_flattened(tensor):
            raise TypeError(f"params: got {FLATTENED}")
    return [p if isinstance(p, tuple) else (f"one of shape {tuple(p.shape)}", p) for p in params]


def _find_caller() -> int:
    """The ``stacklevel`` of the nearest caller outside of this module and of torch, whose wrappers differ by version."""
    frame, level = sys._getframe(1), 1
    while frame.f_back and frame.f_globals.get("__name__", "").startswith((__name__, "torch.")):
        frame, level = frame.f_back, level + 1
    return level


def _label(group: dict, sizes: list[int]) -> list[tuple[str | None, int]]:
    """Names, without those of wrappers, and sizes of a group's parameters."""
    names = group.get("param_names") or [None] * len(sizes)
    return [(name and WRAPPERS.sub("", name), size) for name, size in zip(names, sizes)]


def _views(u: Tensor, params: list[Tensor]) -> list[Tensor]:
    """(D,) cut into the shapes of params: float32 for those of float32, else u's dtype.

    Parameters of 16 bits get no update of 16 bits: the rate times u may be in their range where u is not. Added in place,
    the sum is rounded once.
    """
    cut = u.split([p.numel() for p in params])
    return [v.view(p.shape).float() if p.dtype == torch.float32 else v.view(p.shape) for v, p in zip(cut, params)]


def _gradients(params: list[Tensor]) -> list[Tensor | None]:
    """Of every parameter; None where there is none, or one is left from before it was frozen. Refuses sparse ones."""
    grads = [p.grad if p.requires_grad else None for p in params]
    if any(grad is not None and grad.is_sparse for grad in grads):
        raise TypeError("sparse gradients are not supported")
    return grads


@dataclass(frozen=True)
class _Places:
    """Addresses of the gradients and of the parameters of a group, and the products that work there."""

    products: kernels.Prepared
    grads: list[int]
    params: list[int]


class _Vectors:
    """Gradient and update of a parameter group as vectors of length D, kept from step to step.

    New ones would be new pages of memory, whose first use costs several times as much as a sparse product. The parameters
    are not kept: a group may have others of the same shapes by the next step.
    """

    @torch.inference_mode(False)  # made in inference mode, later steps could not write to them
    def __init__(self, group: dict, partition: Partition):
        params: list[Tensor] = group["params"]
        wide = any(p.dtype == torch.float64 for p in params)
        self.partition = partition
        self.g = torch.empty(partition.size, dtype=torch.float64 if wide else torch.float32, device=params[0].device)  # (D,)
        self.u = torch.empty_like(self.g)  # (D,)
        self.c = self.g.new_empty(partition.dim)  # (d,)
        pieces = [x.split([p.numel() for p in params]) for x in (self.g, self.u)]
        self._gradients, self._updates = ([v.view(p.shape) for v, p in zip(cut, params)] for cut in pieces)
        self._narrow = wide and any(p.dtype == torch.float32 for p in params)
        self._spec = BasisSpec(partition.compartments, distribution_of(group["distribution"]), group["seed"], 0, 0)
        self._prepared = kernels.prepare(self._spec, [p.numel() for p in params], params[0].device)

    def find_places(self, params: list[Tensor]) -> _Places | None:
        """Where the gradients and the parameters are, if the kernels of this distribution and device can work there."""
        grads, products = [p.grad if p.requires_grad else None for p in params], self._prepared
        if products is None or any(g is None or g.shape != p.shape for g, p in zip(grads, params)):
            return None
        read, written = products.find_read(grads, self.g.dtype), products.find_written(params, self.g.dtype)
        return None if read is None or written is None else _Places(products, read, written)

    def read(self, params: list[Tensor]) -> Tensor:
        """g, with zeros where there is no gradient."""
        grads = _gradients(params)
        if any(grad is None for grad in grads):
            self.g.zero_()
        if given := [(v, grad) for v, grad in zip(self._gradients, grads) if grad is not None]:
            torch._foreach_copy_(*zip(*given))
        return self.g

    def cut(self, u: Tensor, params: list[Tensor]) -> list[Tensor]:
        """u cut as by ``_views``."""
        return _views(u, params) if self._narrow or u is not self.u else self._updates


@dataclass(frozen=True)
class _Kept:
    """Vectors of all groups, and what they were made for: the choices last checked, and the tensors' shapes."""

    choices: list[tuple] | None
    tensors: list
    vectors: list[_Vectors]


def _flatten(tensors: list[Tensor]) -> Tensor:
    """One vector of all values: float64 if any tensor is, else float32."""
    dtype = torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32
    return torch.cat([t.reshape(-1).to(dtype) for t in tensors])


class RBD(_RandomBases):
    """Random bases descent: θ ← θ - η Φᵀ Φ g with Φ drawn anew (arXiv 2011.04720), by one process or by many workers.

    Args:
        params: parameters (real floating-point, 16 to 64 bits), groups of them, or ``model.named_parameters()``, whose names
            "by_layer" and "by_ratio:R" need.
        lr: η, for directions of unit expected norm; Φᵀ Φ g is some √(d / D) times as long as g, so η is larger than SGD's.
        dim: number of random directions d of a parameter group, 1 ... D, apportioned to its compartments by their sizes.
        partition: "whole", "by_layer", "by_tensor", "even:K" or "by_ratio:R" (then dim is not used; see rbd.partition).
        distribution: of the entries, "rademacher", "uniform" or "normal" (dense: time grows with dim; signs cost least, and
            no loss of accuracy is seen), or "countsketch" (sparse, one nonzero in every column: a step costs the same for
            every dim, so dim may be large; D / 10 to begin with).
        seed: 0 ... 2**32 - 1; same seed, same bases, on every device.
        redraw: steps for which a basis is kept; 0: it is drawn once (FPD).
        variant: what workers share, "common", "bases", "directions" or "shares" (the table in rbd.distributed); None: this
            process works alone, or "common" where there is a process_group. For parameters under fully_shard: None.
        process_group: of torch.distributed, whose processes are the workers; None: the default group if there is a variant.
        capturable: keep the step number in device memory and never wait for the device, as CUDA graphs need: a replayed
            step then draws new bases. All parameters need gradients. On a GPU coordinates go straight into contiguous
            parameters, without an update of length D in memory. The gradient is not checked for NaN and infinities.

    The arguments before variant may differ between parameter groups. The state is (seed, step), kept in the groups: a
    ``state_dict`` is a few numbers, resuming is bit-exact, and any number of workers can load it. A parameter without a
    gradient, or frozen since, counts as zeros and is not moved; one with requires_grad=False when the optimizer is made is
    left out until add_param_group adds it (a warning says so if it needs a gradient). A step with lr = 0 in all groups
    changes nothing and is not counted. Parameters of 16 bits are updated in float32 and rounded once. If a ``GradScaler``
    finds an overflow on one worker, all skip that step.

    Raises:
        TypeError, ValueError: an argument is out of its range.
        FloatingPointError: at ``step``, if the gradient has NaN or infinity; the parameters are left unchanged.
        RuntimeError: torch.distributed is not initialised; at ``step``, on all workers, if their settings or parameters
            differ (compared in the first step and every 100 steps), or if one died or did not answer within the group's
            timeout.
    """

    _workers: Workers | None = None
    _agreed = False  # whether workers were compared since the state was set
    _kept: _Kept | None = None

    def __init__(self, params, lr: float, dim: int | None = 250, partition: str = "whole", distribution: str = "rademacher",
                 seed: int = 0, redraw: int = 1, variant: str | None = None, process_group=None,
                 capturable: bool = False):  # fmt: skip
        self._capturable = capturable
        super().__init__(params, dict(lr=lr, dim=dim, partition=partition, distribution=distribution, seed=seed,
                                      redraw=redraw))  # fmt: skip
        if variant is not None and variant not in VARIANTS:
            raise ValueError(f"variant: got {variant!r}, allowed {', '.join(map(repr, VARIANTS))}")
        everything = [p for group in self.param_groups for p in group["params"]]
        if any(map(is_sharded, everything)):
            if variant is not None or process_group is not None:
                raise ValueError("sharded parameters take no variant and no process_group: their mesh is the group")
            self._workers = sharded_workers(everything)
        elif variant is not None or process_group is not None:
            self._workers = Workers(variant or "common", process_group)
        if capturable and self._workers is not None:
            raise ValueError("capturable=True is not supported with process_group, variant or sharded parameters")

    def __getstate__(self) -> dict:
        return super().__getstate__() | {"_workers": self._workers}

    def load_state_dict(self, state_dict: dict) -> None:
        super().load_state_dict(state_dict)
        self._agreed = False

    load_state_dict.__doc__ = _RandomBases.load_state_dict.__doc__

    @torch.compiler.disable  # it reads coordinates, which would break a compiled graph
    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """One update; returns what the closure, if given, returns (it is run with gradients on).

        If lr is 0 in all groups, neither the parameters nor the step number change. What was written into the groups since
        the last step is checked as at first.
        """
        self._check_changes()
        loss = None
        if closure:
            with torch.enable_grad():
                loss = closure()
        self._warn_of_unfrozen()
        if self._capturable:
            self._queue()
        else:
            self._step_checked()
        for group in self.param_groups:
            forget_casts(group["params"][0].device)
        return loss

    def _step_checked(self) -> None:
        """An update that reads from the device whether the gradient is finite."""
        self._agree()
        try:
            if self._workers is None:
                self._step_alone()
            else:
                self._step_with(self._workers)
        except FloatingPointError:  # nothing has been moved
            if not hasattr(self, "found_inf"):  # else it is a GradScaler's step, which all workers skip
                raise

    def _step_alone(self) -> None:
        kept = self._vectors()
        if self._step_in_place(kept):
            return
        found = self._check_finite([self._direction_alone(*each) for each in zip(self.param_groups, kept)])
        counted = self._is_moving()
        for group, vectors, u in zip(self.param_groups, kept, found):
            params = group["params"]
            self._move(group, params, vectors.cut(u, params))
            group["step"] += counted

    def _step_in_place(self, kept: list[_Vectors]) -> bool:
        """The update, if the kernels can read all gradients and write all parameters where they are; whether it is made."""
        places = [at for group, v in zip(self.param_groups, kept) if (at := v.find_places(group["params"]))]
        if is_watched() or len(places) < len(kept):
            return False
        steps = [self._basis_step(group) for group in self.param_groups]
        found = [at.products.project_at(at.grads, step, v.c) for at, step, v in zip(places, steps, kept)]
        if not all(at.products.is_finite(c) for at, c in zip(places, found)):
            return False
        counted = self._is_moving()
        for group, at, c, step in zip(self.param_groups, places, found, steps):
            at.products.add_at(at.params, group["params"], c, -float(group["lr"]), step)
            group["step"] += counted
        return True

    def _step_with(self, workers: Workers) -> None:
        found = self._check_finite(self._exchange(workers))
        counted = self._is_moving()
        for group, u in zip(self.param_groups, found):
            values = _local(group["params"])
            self._move(group, values, _views(u, values))
            group["step"] += counted

    @staticmethod
    def _move(group: dict, values: list[Tensor], updates: list[Tensor]) -> None:
        """θ -= η u, for the parameters of a group that have a gradient; values: this worker's values of them."""
        pairs = [(p, v) for p, v, grad in zip(values, updates, _gradients(group["params"])) if grad is not None]
        if pairs:
            torch._foreach_add_(*zip(*pairs), alpha=-float(group["lr"]))

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """With workers, a GradScaler calls ``step`` after an overflow too, and ``step`` skips: no worker may stay away."""
        return self._workers is not None

    def _queue(self) -> None:
        """The update as work for the device alone: θ += Φᵀ (-η Φ g)."""
        moves = [self._queue_move(index) for index in range(len(self.param_groups))]  # before anything is moved
        for group, move in zip(self.param_groups, moves):
            kernels.add(*move, group["params"])
        counted = self._is_moving_there()
        for group in self.param_groups:
            group["step"] += counted

    def _queue_move(self, index: int) -> tuple[Tensor, BasisSpec]:
        """-η Φ g (d,) of a group, and its bases."""
        group = self.param_groups[index]
        if any(grad is None for grad in _gradients(group["params"])):
            raise ValueError("capturable=True needs a gradient in every parameter, and none of them frozen")
        part = self._part(index)
        with kernels.keep_apart(self, part.g.device):
            c = kernels.project(part.g, part.spec)  # (d,)
        return -group["lr"] * c, part.spec

    def _vectors(self) -> list[_Vectors]:
        """Those of every group, made anew when a setting, shape, dtype or device has changed since the last step."""
        facts = [[(p.shape, p.dtype, p.device) for p in group["params"]] for group in self.param_groups]
        if self._kept is None or self._kept.choices is not self._checked or self._kept.tensors != facts:
            vectors = [_Vectors(group, self.partition(i)) for i, group in enumerate(self.param_groups)]
            self._kept = _Kept(self._checked, facts, vectors)
        return self._kept.vectors

    def _direction_alone(self, group: dict, vectors: _Vectors) -> Direction:
        g, step = vectors.read(group["params"]), self._basis_step(group)
        u, c = rbd_direction(g, vectors.partition, group["distribution"], group["seed"], 0, step, vectors.u)
        return Direction(u, [c])

    def _exchange(self, workers: Workers) -> list[Direction]:
        """The update of every group, from the coordinates of all workers."""
        parts = [self._part(index) for index in range(len(self.param_groups))]
        if workers.variant != "sharded":
            return workers.directions(parts)
        mine = [self._columns(part, group["params"], workers) for part, group in zip(parts, self.param_groups)]
        return sharded_directions(workers, parts, mine)

    def _check_finite(self, found: list[Direction]) -> list[Tensor]:
        """u of every group, if all coordinates are finite.

        Every column of a basis has an entry that is not 0, so a NaN or infinity in g always shows in the coordinates.

        Raises:
            FloatingPointError: they are not; names the parameters or the workers.
        """
        alike = self._workers is None or self._workers.variant != "sharded"  # whether u is the same on all
        for index, (u, coordinates) in enumerate(found):
            known = [(r, c) for r, c in enumerate(coordinates) if is_ordinary(c)]  # a FakeTensor has no values
            suspects = [r for r, c in known if not math.isfinite(float(c.sum()))]
            bad = [r for r in suspects if not coordinates[r].isfinite().all()]  # the sum of finite ones may overflow
            if bad or (suspects and not (alike and u.isfinite().all())):
                of = f" of group {index}" if len(self.param_groups) > 1 else ""
                got = _culprit(self.param_groups[index], of, bad or suspects, self._workers)
                raise FloatingPointError(f"gradient: got {got}")
        return [direction.u for direction in found]

    def _part(self, index: int) -> Part:
        params = self.param_groups[index]["params"]
        grads = [torch.zeros_like(p) if grad is None else grad for p, grad in zip(params, _gradients(params))]
        return Part(self._unscale(_flatten(_local(grads))), self._spec(index))

    def _unscale(self, g: Tensor) -> Tensor:
        """g, divided in place by the scale of a GradScaler that left this to the step; all NaN if it found an overflow."""
        if (scale := getattr(self, "grad_scale", None)) is not None:
            g *= scale.double().reciprocal().float().to(g.device)  # as GradScaler.unscale_ does
        return g.fill_(math.nan) if float(getattr(self, "found_inf", 0)) else g

    @staticmethod
    def _columns(part: Part, params: list[Tensor], workers: Workers) -> Columns:
        """The columns of the basis that belong to this worker's values of a sharded group."""
        pieces = local_pieces([tuple(p.shape) for p in params], workers.rank, workers.size)
        if [stop - start for start, stop in pieces] != [p.numel() for p in _local(params)]:
            raise ValueError("shards must have the sizes that fully_shard gives them, those of torch.chunk")
        return columns(part.spec.compartments, pieces)

    def _agree(self) -> None:
        """In the first step and every CHECK steps, compare settings, step and parameters of all workers."""
        workers, first = self._workers, self.param_groups[0]
        if workers is None or (self._agreed and first["step"] % CHECK):
            return
        facts = {"variant": workers.variant, "param_groups": len(self.param_groups)}
        for index, group in enumerate(self.param_groups):
            of = f"param_groups[{index}]." if index else ""
            facts |= {f"{of}{name}": group[name] for name in SETTINGS} | {f"{of}lr": float(group["lr"])}
            facts |= {f"{of}size": sum(group["size"])}
            facts |= {f"{of}shapes": [tuple(p.shape) for p in group["params"]]}
            facts |= {f"{of}has_gradient": [grad is not None for grad in _gradients(group["params"])]}
            if workers.variant != "sharded":  # where every worker holds other values
                facts |= {f"{of}parameters": digest(group["params"])}
        workers.agree(facts)
        self._agreed = True


def _local(tensors: list[Tensor]) -> list[Tensor]:
    """This worker's values, of those that are sharded."""
    return [t.to_local() if is_sharded(t) else t for t in tensors]


def _culprit(group: dict, of: str, bad: list[int], workers: Workers | None) -> str:
    """What is not finite, and what is allowed: gradients by name, else those of the workers ``bad``, else projections."""
    names = group.get("param_names") or [f"parameter {i}{of}" for i in range(len(group["params"]))]
    found = [n for n, grad in zip(names, _gradients(group["params"])) if grad is not None and not _finite(grad)]
    if found:
        return f"NaN or infinity in {', '.join(found)}, allowed finite values"
    if workers is not None and workers.size > 1:
        is_sum = workers.variant in ("common", "sharded")  # only the sum is known
        whose = "another worker" if is_sum else f"worker {', '.join(map(str, bad))}"
        return f"NaN or infinity from {whose}, allowed finite values"
    return "finite values whose projections overflow: scale the loss down, or clip the gradient"


def _finite(grad: Tensor) -> bool:
    (values,) = _local([grad])
    return bool(torch.isfinite(values).all())


class FPD(RBD):
    """Fixed projection descent: RBD whose basis is drawn once (Li et al. 2018, arXiv 1804.08838).

    Arguments and errors as in RBD, without ``redraw``.
    """

    def __init__(self, params, lr: float, dim: int | None = 250, partition: str = "whole", distribution: str = "rademacher",
                 seed: int = 0, variant: str | None = None, process_group=None, capturable: bool = False):  # fmt: skip
        super().__init__(params, lr, dim, partition, distribution, seed, 0, variant, process_group, capturable)

    def _check_choices(self, group: dict) -> None:
        if group["redraw"] != 0:
            raise ValueError(f"redraw: got {group['redraw']}, allowed 0 (FPD draws its basis once)")
        super()._check_choices(group)


@dataclass
class _Trial:
    """The evaluations of a step of NES so far, in memory that is kept from step to step, as CUDA graphs need."""

    start: list[Tensor]  # the parameters before
    losses: Tensor  # (d,) float64: a small σ changes them by less than float32 can tell
    row: int | Tensor = 0  # of the next evaluation; () int64 in device memory if capturable

    @classmethod
    def of(cls, group: dict, capturable: bool) -> _Trial:
        start = [torch.empty_like(p) for p in group["params"]]
        losses = torch.zeros(group["dim"], dtype=torch.float64, device=start[0].device)
        return cls(start, losses, torch.zeros((), dtype=torch.int64, device=start[0].device) if capturable else 0)

    def fits(self, group: dict) -> bool:
        """Whether it is for parameters like these, and as many rows."""
        facts = [[(p.shape, p.dtype, p.device) for p in params] for params in (self.start, group["params"])]
        return facts[0] == facts[1] and len(self.losses) == group["dim"]


class NES(_RandomBases):
    """Natural evolution strategies in a random basis: θ ← θ - η / (σ d) Φᵀ c, without gradients.

    c_i is the centred rank of the loss at θ + σ φ_i, compared in float64. Equal losses are ranked by their row, so where all
    are equal a step is random. Each of the d rows φ_i has unit expected norm and is regenerated for its own evaluation.
    Where every evaluation sees the same mini-batch this is the paper's RBD-NES (arXiv 2011.04720). Parameters that are
    frozen after it was made stay where they are.

    The optimizer knows parameters only. Whatever else an evaluation changes is changed d times a step: in training mode,
    BatchNorm's running statistics then follow d perturbed networks. To leave them alone, evaluate the model on copies of its
    buffers: ``torch.func.functional_call(model, {name: b.clone() for name, b in model.named_buffers()}, (x,))``.

    Args:
        params, dim, distribution, seed: as in RBD; one group only.
        lr: η; to begin with, RBD's rate at d = 250 times 100 σ.
        sigma: σ > 0, length of a perturbation; scale lr with it. None: 0.01 √D, which moves parameters by 0.01 (root mean
            square), as the paper's released code does; its RBD-NES has 0.002 √D. If each evaluation draws its own
            mini-batch, do not make σ much smaller: at about 1/100 of this nothing is learned, since losses then differ more
            between batches than between directions.
        capturable: keep the numbers of the step and of the next row in device memory and never wait for the device, as CUDA
            graphs need: of a whole step, or of its pieces ``begin``, ``evaluate`` (d times) and ``finish``. Losses are not
            checked for NaN, nor is it checked that there are d of them.

    Raises:
        TypeError, ValueError: an argument is out of its range, or there is a second parameter group.
    """

    _trial: _Trial | None = None

    def __init__(self, params, lr: float, dim: int = 250, distribution: str = "rademacher", seed: int = 0,
                 sigma: float | None = None, capturable: bool = False):  # fmt: skip
        self._capturable = capturable
        super().__init__(params, dict(lr=lr, dim=dim, distribution=distribution, seed=seed, sigma=sigma))

    def _check(self, group: dict) -> None:
        if len(self.param_groups) > 1:
            raise ValueError(f"NES supports one parameter group, got {len(self.param_groups)}")
        super()._check(group)

    def _check_choices(self, group: dict) -> None:
        if group["sigma"] is None:
            group["sigma"] = 0.01 * math.sqrt(sum(p.numel() for p in group["params"]))
        if not (isinstance(sigma := group["sigma"], Real) and not isinstance(sigma, bool) and 0 < float(sigma) < math.inf):
            raise ValueError(f"sigma: got {sigma!r}, allowed 0 < sigma < infinity")
        group["sigma"] = float(sigma)
        super()._check_choices(group)

    @torch.compiler.disable
    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor | float]) -> Tensor | None:
        """One update from d evaluations of the loss.

        Args:
            closure: returns the loss at the present parameters, a number or a tensor of one value, without calling backward;
                called d times.

        Returns:
            The mean of the d losses, () float32 on the parameters' device.

        Raises:
            TypeError: there is no closure, or its first loss is not a number; the parameters are restored first.
            ValueError: a setting in the parameter group was changed to one out of its range.
            FloatingPointError: a loss is NaN; the parameters are restored first.
            RuntimeError: every parameter was frozen after the optimizer was made.
        """
        (group,) = self.param_groups
        if closure is None:
            if not self._is_moving():  # torch.distributed.checkpoint makes such a step to initialise an optimizer's state
                return None
            raise TypeError("NES.step needs a closure that returns the loss")
        self._warn_of_unfrozen()
        self.begin()
        try:
            for _ in range(group["dim"]):
                self.evaluate(closure)
            return self.finish()
        finally:
            self._end()

    @torch.no_grad()
    def begin(self) -> None:
        """The first piece of a step, before its d evaluations, for CUDA graphs of some evaluations each.

        Raises:
            RuntimeError: every parameter was frozen after the optimizer was made.
        """
        (group,) = self.param_groups
        self._check_changes()
        if not any(p.requires_grad for p in group["params"]):
            raise RuntimeError("NES has nothing to move: every parameter was frozen after it was made")
        if self._trial is None or not self._trial.fits(group):
            self._trial = _Trial.of(group, self._capturable)
        torch._foreach_copy_(self._trial.start, group["params"])
        self._trial.row *= 0

    def _end(self) -> None:
        if not self._capturable:  # else a captured graph goes on writing to it
            self._trial = None

    def _begun(self) -> _Trial:
        if self._trial is None:
            raise RuntimeError("evaluate and finish are pieces of a step: call begin first")
        return self._trial

    @torch.no_grad()
    def evaluate(self, closure: Callable[[], Tensor | float]) -> Tensor:
        """The next of a step's d evaluations: the loss, (), at the parameters moved along the next row of the basis.

        The parameters are moved for as long as the closure runs; if it raises, the row may be evaluated again. With
        capturable, a graph of it evaluates another row at every replay: the row's number is in device memory too.

        Raises:
            RuntimeError: ``begin`` was not called, or all d rows have been evaluated (with capturable, this is not checked).
            TypeError: the loss is not a number.
        """
        (group,), trial = self.param_groups, self._begun()
        if isinstance(trial.row, int) and trial.row == len(trial.losses):
            raise RuntimeError(f"all {trial.row} rows of this step have been evaluated: call finish")
        try:
            loss = self._loss_at(closure, trial.row)
        finally:
            torch._foreach_copy_(group["params"], trial.start)
            forget_casts(trial.losses.device)
        if isinstance(trial.row, Tensor):
            trial.losses.index_copy_(0, trial.row.reshape(1), loss.double().reshape(1))
        else:
            trial.losses[trial.row] = loss
        trial.row += 1
        return loss

    @torch.no_grad()
    def finish(self) -> Tensor:
        """The last piece of a step: the update from the losses of all rows; returns their mean, () float32.

        Raises:
            RuntimeError: ``begin`` was not called, or not all d rows were evaluated.
            FloatingPointError: a loss is NaN. With capturable, neither the number of rows nor their losses are checked.
        """
        (group,), trial = self.param_groups, self._begun()
        losses = trial.losses
        if isinstance(trial.row, int) and trial.row < len(losses):
            raise RuntimeError(f"{trial.row} of {len(losses)} rows of this step have been evaluated: call evaluate for each")
        if not self._capturable and losses.isnan().any():
            raise FloatingPointError(f"closure: got NaN in {int(losses.isnan().sum())} of {len(losses)} losses")
        ranks = centred_ranks(losses, torch.float32)  # (d,)
        u = kernels.expand(ranks, self._spec(0)) / (group["sigma"] * group["dim"])  # (D,)
        if self._capturable and isinstance(group["lr"], Tensor):  # which may be in device memory
            self._move(group["params"], u * -group["lr"], 1.0)
        else:
            self._move(group["params"], u, -float(group["lr"]))
        group["step"] += self._is_moving_there() if self._capturable else self._is_moving()
        self._end()
        return losses.float().mean()

    def _loss_at(self, closure: Callable[[], Tensor | float], row: int | Tensor) -> Tensor:
        (group,), device = self.param_groups, self.param_groups[0]["params"][0].device
        spec, one = self._spec(0), torch.ones(1, dtype=torch.float32, device=device)
        (whole,), there = spec.compartments, row if isinstance(row, Tensor) else None
        number = 0 if isinstance(row, Tensor) else row
        direction = Compartment(whole.number, 0, whole.stop, 1, number, total=whole.total)
        phi = kernels.expand(one, replace(spec, compartments=(direction,), first_row=there))  # (D,)
        self._move(group["params"], phi, group["sigma"])
        return _as_loss(closure(), device)

    @staticmethod
    def _move(params: list[Tensor], u: Tensor, alpha: float) -> None:
        """θ += alpha u, without the parameters that have been frozen since."""
        moves = _views(u, params)
        if not all([p.requires_grad for p in params]):  # a list, which costs less than a generator in every evaluation
            params, moves = zip(*[(p, v) for p, v in zip(params, moves) if p.requires_grad])  # type: ignore[assignment]
        torch._foreach_add_(params, moves, alpha=alpha)
        forget_casts(u.device)


def _as_loss(value: Tensor | float, device: torch.device) -> Tensor:
    """What a closure returned as a real tensor of shape (), on a device.

    Raises:
        TypeError: it is not a number, or has more than one value.
    """
    if hasattr(value, "__float__") and not hasattr(value, "shape"):  # a number, such as a float or Fraction
        value = torch.tensor(float(value), dtype=torch.float64, device=device)  # whatever torch's default dtype is
    loss = torch.as_tensor(value, device=device) if hasattr(value, "shape") else None  # also arrays, NumPy's numbers
    if loss is not None and loss.numel() == 1 and not loss.is_complex():
        return loss.detach().reshape(())
    got = repr(value) if loss is None else f"{loss.dtype} of shape {tuple(loss.shape)}"
    raise TypeError(f"closure: got {got} for the loss, allowed a real number or a tensor of one")
