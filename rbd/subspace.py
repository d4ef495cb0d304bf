"""Subspace: a model whose parameters are θ = θ0 + Φᵀ c, so that any torch optimizer trains the d coordinates c."""

from __future__ import annotations

import gc
import json
import os
import threading
import weakref
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property, partial
from hashlib import blake2b
from io import IOBase
from logging import Logger
from numbers import Number
from pathlib import Path
from secrets import token_hex
from types import CodeType, FrameType, FunctionType, ModuleType, TracebackType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from rbd import kernels
from rbd.basis import check_integer, check_word, forget_casts
from rbd.compartment import BasisSpec
from rbd.distributed.exchange import digest
from rbd.distributed.fsdp import FLATTENED, is_flattened, is_sharded
from rbd.distribution import distribution as distribution_of
from rbd.kernels.compiled import is_batched, sum_dtype
from rbd.kernels.memory import is_under_transform
from rbd.partition import parse
from rbd.partition import partition as partition_of
from rbd.philox import STREAM_VERSION

METADATA = "rbd.Subspace"  # key in the header of a file
_DTYPES: dict[str, np.dtype] = {"F32": np.dtype("<f4"), "F64": np.dtype("<f8")}  # names that safetensors gives them
_CHANGED = ("{}: got {}, allowed {}: the model was changed without the Subspace; move both by sub.to(...), shard both by "
            "fully_shard(sub), and wrap a model anew whose parameters are replaced")


class Subspace(nn.Module):
    """A model with the parameters θ = θ0 + Φᵀ c, of which only the d coordinates c are trained (arXiv 1804.08838)::

        sub = Subspace(model, dim=10_000)
        optimizer = torch.optim.Adam(sub.parameters(), lr=0.01)  # any optimizer, of d numbers
        criterion(sub(x), y).backward()                          # coordinates.grad = Φ g

    Φ is the basis of FPD with the same arguments, never stored but regenerated for every product; its rows have unit
    expected norm, so θ moves about as far as c. The model is not copied: its parameters are θ0, frozen, and swapped for θ
    during a forward pass and the backward pass through it (in which gradient checkpoints run parts of the model again).
    Several Subspaces may share a model, as adapters of d numbers each. Buffers such as batch norm's stay the model's:
    training changes them as usual, and they are not saved with the coordinates. One thread at a time may train.

    With many workers: ``DistributedDataParallel(sub)`` exchanges d gradients, where all have the same θ0, and
    ``fully_shard(sub)`` works on the whole (not layer by layer). torch.compile(sub) works; torch.func's transforms and
    forward-mode derivatives do not.

    Args:
        model: has real floating-point parameters, on one device.
        dim: d, number of coordinates, 1 ... D; None with partition "by_ratio:R".
        seed, partition: as in RBD.
        distribution: as in RBD, but by default "countsketch", whose cost does not depend on d; the dense ones take d D
            random numbers in each forward and in each backward pass.
        params: names of the parameters to move, or patterns such as "head.*"; None: all floating-point ones. The others are
            frozen where they are.

    Attributes:
        coordinates: c, (d,) float32, or float64 if a moved parameter is; at first zeros. All that ``parameters()`` has.
        model: the module given, with θ0.

    Raises:
        TypeError, ValueError: an argument is out of its range, or the model has nothing to move.
    """

    @torch.inference_mode(False)  # what is made here has to be trainable
    def __init__(self, model: nn.Module, dim: int | None, seed: int = 0, distribution: str = "countsketch",
                 partition: str = "whole", params: str | Iterable[str] | None = None):  # fmt: skip
        super().__init__()
        _check_model(model)
        self._params = None if params is None else _as_patterns(params)
        self._names = _choose(model, self._params)  # of each moved parameter, several where weights are tied
        start = [model.get_parameter(names[0]) for names in self._names]
        layout = tuple((names[0], p.numel()) for names, p in zip(self._names, start))
        parse(partition)
        cut = partition_of(partition, layout, dim if dim is None else check_integer("dim", dim))
        self._spec = BasisSpec(cut.compartments, distribution_of(distribution), check_word("seed", seed), 0, 0)
        self._paths = [[(tuple(n.split(".")[:-1]), n.rpartition(".")[2]) for n in names] for names in self._names]
        self._partition, self._shapes = str(partition), [p.shape for p in start]
        self.model, self.training = model, model.training
        dtype = torch.float64 if any(p.dtype == torch.float64 for p in start) else torch.float32
        self.coordinates = nn.Parameter(torch.zeros(cut.dim, dtype=dtype, device=start[0].device))
        self._checksum = self._sum_up()
        self.register_buffer("_of_first", _words(self._checksum, start[0].device), persistent=False)
        self._compared = False
        self.register_state_dict_post_hook(_keep_own)
        self.register_load_state_dict_post_hook(_expect_own)
        model.requires_grad_(False)  # when nothing can fail any more

    _of_first: Tensor
    _base: _BaseWeights | None = None  # θ0, when last looked up

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the model gives with the parameters θ.

        Raises:
            RuntimeError: the model's parameters were replaced, moved or sharded without the Subspace, or, in the first call,
                another worker of DistributedDataParallel has other weights θ0.
            ValueError: the model returns a parameter, or a view of one.
            TypeError: the model returns what can run its modules later, such as a generator, or objects in which it finds no
                tensor with a gradient.
            NotImplementedError: it is called under a transform of torch.func or torch.jit.trace.
        """
        if torch.compiler.is_compiling():
            return self._forward_compiled(args, kwargs)
        if is_under_transform() or torch.jit.is_tracing():
            raise NotImplementedError("a Subspace supports neither the transforms of torch.func nor torch.jit.trace: "
                                      "use torch.autograd, and trace the model that merge() returns")  # fmt: skip
        if not self._compared:
            self._compare()
        swap = _swap_of(self._modules["model"])
        with _Level(swap) as level:
            moved = self._move_weights()
            level.put(moved)
            out = self._modules["model"](*args, **kwargs)
        _watch_backward(out, swap, moved)
        return out

    def _move_weights(self) -> _MovedWeights:
        base, c = self._find_base(), self._parameters["coordinates"]
        return _MovedWeights(base, _Theta.apply(c, self._spec, base), c)

    def _forward_compiled(self, args: tuple, kwargs: dict) -> Any:
        """``forward`` by operations that torch.compile can trace."""
        _, start = self._walk()
        u = kernels.differentiable_expand(self.coordinates, self._spec)  # (D,)
        moves = [v.view(p.shape) for p, v in zip(start, u.split([p.numel() for p in start]))]
        theta = {n: (p + v).to(p.dtype) for names, p, v in zip(self._choose_names(), start, moves) for n in names}
        out = torch.func.functional_call(self.model, theta, args, kwargs, tie_weights=False)
        if any(map(_is_lazy, tree_leaves(out))):  # after an error torch.compile runs the uncompiled pass, which looks closer
            raise TypeError("the model returns a module, a function or an iterator: return tensors")
        return out

    def _choose_names(self) -> list[list[str]]:
        """Names of every moved parameter, one for each module that holds it.

        functional_call swaps by name: with two names of the same place it would not put θ0 back.
        """
        held = {f"{path}.{name}".lstrip(".") for path, m in self.model.named_modules() for name in m._parameters}
        return [[name for name in names if name in held] for names in self._names]

    def _find_base(self) -> _BaseWeights:
        """θ0 as the model holds it now."""
        base = self._base
        if base is None or not base.is_current():
            owners, start = self._walk()
            sizes, device = [p.numel() for p in start], start[0].device
            rnns = [m for m in self.model.modules() if isinstance(m, nn.RNNBase)]
            prepared = kernels.prepare(self._spec, sizes, device)
            base = self._base = _BaseWeights(device, start, owners, self._list_links(owners, start), rnns, prepared)
        return base

    def _list_links(self, owners: list[_Owner], start: list[Tensor]) -> list[_Link]:
        links = [_Link(self._modules, "model", self.model)]
        own = [m for m in self.model.modules() if not isinstance(m, torch.jit.ScriptModule)]  # of which none is moved
        links += [_Link(m._modules, name, child) for m in own for name, child in m._modules.items()]
        return links + [_Link(owner.parameters, owner.name, start[owner.number]) for owner in owners]

    def _walk(self) -> tuple[list[_Owner], list[Tensor]]:
        """Where modules hold the moved parameters, and θ0.

        Raises:
            RuntimeError: a tensor of θ0 has another shape or device than when the Subspace was made, or is sharded.
        """
        owners, start, device = [], [], self.coordinates.device
        for i, (paths, names, shape) in enumerate(zip(self._paths, self._names, self._shapes)):
            p: Any = None
            try:
                for path, name in paths:
                    module: Any = self._modules["model"]
                    for part in path:
                        module = module._modules[part]
                    owners.append(_Owner(module._parameters, name, i))
                    p = module._parameters[name]
            except (KeyError, AttributeError):
                p = None
            if p is None or p.shape != shape or p.device != device or is_sharded(p):
                raise RuntimeError(_CHANGED.format(names[0], _describe(p), f"{tuple(shape)} on {device}"))
            start.append(p)
        return owners, start

    def _compare(self) -> None:
        """Raise RuntimeError unless θ0 equals that of worker 0, whose checksum DistributedDataParallel has broadcast."""
        if self._of_first.is_meta:  # for which there are no kernels, as the next error says
            return
        words = self._of_first.tolist()  # a Subspace pickled by rbd 0.2 has two, of 32 bits
        if "".join(f"{round(word):0{16 // len(words)}x}" for word in words) != self._checksum:
            raise RuntimeError("the weights θ0 differ from those of worker 0: give all workers the same, then wrap them")
        self._compared = True

    def _sum_up(self) -> str:
        """Checksum, 16 hexadecimal digits, of all parameters and of which of them are moved."""
        moved = {names[0] for names in self._names}
        facts = [(name, name in moved, tuple(p.shape), str(p.dtype), digest([] if p.is_meta else [p]))
                 for name, p in self._list_weights()]  # fmt: skip
        return blake2b(repr(facts).encode(), digest_size=8).hexdigest()

    def _list_weights(self) -> list[tuple[str, Tensor]]:
        """Names and values of all parameters, θ0 also while a pass has θ in its place."""
        swap = _swap_of(self.model)
        with swap.lock:
            start = {} if swap.active is None else dict(zip(map(id, swap.active.theta), swap.active.base.start))
            return [(name, start.get(id(p), p)) for name, p in self.model.named_parameters()]

    def check(self) -> None:
        """Raise unless the model's parameters equal those at construction (or after ``merge`` or a change of dtype).

        Reads all of them; ``state_dict``, ``load_state_dict``, ``save``, ``load`` and ``merge`` call it. Does nothing under
        fully_shard, where a worker has only a part of them.

        Raises:
            RuntimeError: a parameter has changed.
        """
        if any(is_sharded(p) for _, p in self._list_weights()):
            return
        if self._sum_up() != self._checksum:
            raise RuntimeError("the model's weights θ0 have changed since the Subspace was made, so the coordinates do not "
                               "belong to them: restore the weights, or make a new Subspace")  # fmt: skip

    @torch.no_grad()
    def merge(self) -> nn.Module:
        """Write θ into the model and return the model.

        θ is the new θ0 and the coordinates are set to zero, so the Subspace computes the same function as before.

        Raises:
            RuntimeError: θ0 has changed, or is sharded.
        """
        if hasattr(self, "unshard"):
            raise RuntimeError("merge is not supported under fully_shard: save the coordinates, and load them elsewhere")
        with _Level(_swap_of(self.model)):
            self.check()
            _, start = self._walk()
            for p, moved in zip(start, kernels.shift(self.coordinates, self._spec, start)):
                p.copy_(moved)
            forget_casts(start[0].device)
            self.coordinates.zero_()
            self._set_checksum()
        return self.model

    def _set_checksum(self) -> None:
        self._checksum = self._sum_up()
        self._of_first = _words(self._checksum, self.coordinates.device)

    def get_extra_state(self) -> dict:
        """The name of the basis, and the checksum of θ0, after ``check``."""
        self.check()
        return {"stream_version": STREAM_VERSION, "dim": self._spec.dim, "size": self._spec.size, "seed": self._spec.seed,
                "distribution": self._spec.distribution.name, "partition": self._partition, "params": self._params,
                "checksum": self._checksum}  # fmt: skip

    def set_extra_state(self, state: dict) -> None:
        """Does nothing: ``_load_from_state_dict`` has compared the state before the coordinates were loaded."""

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        self._prefix = prefix
        if saved := state_dict.get(prefix + "_extra_state"):
            for name, here in self.get_extra_state().items():
                if name != "params" and saved.get(name) != here:
                    what = "model weights θ0 or params" if name == "checksum" else "basis"
                    raise ValueError(f"coordinates of another {what}: {name}: got {saved.get(name)}, allowed {here}")
        c = state_dict.get(prefix + "coordinates")
        if isinstance(c, Tensor) and c.is_floating_point():  # assign=True would keep its dtype
            state_dict[prefix + "coordinates"] = c.to(self.coordinates.dtype)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def save(self, path: str | os.PathLike) -> None:
        """Write the coordinates and the name of the basis: a safetensors file of 4 d bytes (8 d of float64) and a header.

        Under fully_shard every worker must call it, since they gather the coordinates. Worker 0 of the mesh writes the file;
        the others do not wait for it.

        Raises:
            RuntimeError: θ0 has changed.
            OSError: the file cannot be written; an earlier one stays as it was.
        """
        c, writes = self.coordinates, True
        if is_sharded(c):
            writes = not any(c.device_mesh.get_coordinate())  # type: ignore[operator]
            c = c.full_tensor()  # type: ignore[operator]
        if writes:
            _write_whole(Path(path), self._to_bytes(c.detach().cpu().numpy()))

    def _to_bytes(self, c: np.ndarray) -> bytes:
        """The content of a file with these coordinates."""
        kind = "F64" if c.dtype == np.float64 else "F32"
        values = c.astype(_DTYPES[kind]).tobytes()
        header = json.dumps({
            "__metadata__": {"format": "pt", METADATA: json.dumps(self.get_extra_state())},
            "coordinates": {"dtype": kind, "shape": [len(c)], "data_offsets": [0, len(values)]},
        }).encode()  # fmt: skip
        header += b" " * (-len(header) % 8)
        return len(header).to_bytes(8, "little") + header + values

    @classmethod
    def load(cls, path: str | os.PathLike, model: nn.Module) -> Subspace:
        """The Subspace that ``save`` wrote, around the model that it was made for.

        Raises:
            OSError: there is no such file.
            ValueError: it holds something else, or coordinates for other weights θ0; the model stays as it was.
        """
        name, coordinates = _read(Path(path))
        _check_model(model)
        trained = [p for p in model.parameters() if p.requires_grad]
        sub = cls(model, name["dim"], name["seed"], name["distribution"], name["partition"], name["params"])
        try:
            sub.load_state_dict({"coordinates": coordinates, "_extra_state": name})
        except (RuntimeError, ValueError):
            for p in trained:
                p.requires_grad_(True)
            raise
        return sub

    def named_parameters(self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True):
        """The coordinates alone, without the model's own parameters, which are frozen."""
        yield f"{prefix}.coordinates" if prefix else "coordinates", self.coordinates

    def _apply(self, fn, recurse: bool = True):
        """Called by ``to``, ``half`` and others. Coordinates stay in float32 where the model gets a shorter dtype."""
        with _Level(_swap_of(self.model)):
            self._convert(fn, recurse)
        return self

    def _convert(self, fn, recurse: bool) -> None:
        before, c = {p.dtype for p in self.model.parameters()}, self.coordinates.detach()
        super()._apply(fn, recurse)
        if self.coordinates.dtype != (wanted := sum_dtype(self.coordinates.dtype)):
            self.coordinates.grad = None
            self.coordinates.data = c.to(self.coordinates.device, wanted)
        self._of_first = _words(self._checksum, self.coordinates.device)  # to_empty leaves it without values
        if {p.dtype for p in self.model.parameters()} != before:
            self._set_checksum()

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_base": None}  # copies have a model of their own

    def extra_repr(self) -> str:
        spec = self._spec
        return (f"dim={spec.dim}, size={spec.size}, seed={spec.seed}, distribution={spec.distribution.name!r}, "
                f"partition={self._partition!r}")  # fmt: skip


class _Theta(torch.autograd.Function):
    """θ0 + Φᵀ c, cut into the model's parameters; backward projects the gradients of all of them at once."""

    @staticmethod
    def forward(ctx: Any, c: Tensor, spec: BasisSpec, base: _BaseWeights) -> tuple[Tensor, ...]:
        ctx.of = spec, base, c.dtype
        ctx.set_materialize_grads(False)
        made = None if base.prepared is None else base.prepared.shift(c, base.start)
        return tuple(kernels.shift(c, spec, base.start) if made is None else made)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple:
        spec, base, dtype = ctx.of
        again = torch.is_grad_enabled() or any(is_batched(v) for v in grads if v is not None)  # create_graph=True, ...
        c = base.prepared.project(grads, dtype) if base.prepared and not again else None
        if c is None:
            g = _join(grads, base.start, dtype)
            c = (kernels.differentiable_project if again else kernels.project)(g, spec).to(dtype)
        return c, None, None


def _join(grads: Sequence[Tensor | None], start: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Gradients of all parameters as one vector, (D,), zeros where there is none."""
    parts = [torch.zeros_like(p, dtype=dtype) if v is None else v.to_dense() if v.is_sparse else v
             for p, v in zip(start, grads)]  # fmt: skip
    return torch.cat([v.reshape(-1) for v in parts])


class _Owner(NamedTuple):
    """Where a module holds a moved parameter; several do where weights are tied.

    Attributes:
        parameters, name: the parameter is ``parameters[name]``.
        number: of the parameter among the moved ones.
    """

    parameters: dict[str, Any]
    name: str
    number: int


class _Link(NamedTuple):
    """``holder[name] is target``: a link of the chain from the Subspace through the model's modules to its parameters."""

    holder: dict[str, Any]
    name: str
    target: Any


@dataclass(frozen=True)
class _BaseWeights:
    """θ0, and where the model holds it.

    Attributes:
        device, start: of θ0, and its tensors.
        owners: where modules hold them.
        links: all that leads to them; while it is unchanged, this is current.
        rnns: modules that keep a second list of their parameters.
        prepared: what ``kernels.prepare`` gave for tensors of these sizes.
    """

    device: torch.device
    start: list[Tensor]
    owners: list[_Owner]
    links: list[_Link]
    rnns: list[nn.RNNBase]
    prepared: kernels.Prepared | None

    @cached_property
    def modules(self) -> frozenset[nn.Module]:
        """All modules of the model."""
        return frozenset(self.links[0].target.modules())

    @cached_property
    def movers(self) -> frozenset[nn.Module]:
        """Those that hold a moved parameter."""
        held = {id(params) for params, _, _ in self.owners}
        return frozenset(m for m in self.modules if id(m._parameters) in held)

    def is_current(self) -> bool:
        """Whether the model still holds these tensors."""
        for holder, name, target in self.links:
            if holder.get(name) is not target:
                return False
        return self.start[0].device == self.device

    def swap(self, old: Sequence[Tensor], new: Sequence[Tensor]) -> None:
        """Replace the old tensors by the new ones in the model, except where others (such as FSDP) have put their own."""
        for params, name, i in self.owners:
            if params.get(name) is old[i]:
                params[name] = new[i]
        for module in self.rnns:
            module._flat_weights = [getattr(module, weight, None) for weight in module._flat_weights_names]


class _MovedWeights:
    """θ of one forward pass.

    Attributes:
        base: θ0.
        theta: the tensors of θ.
        coordinates, version: c, kept so that no other tensor gets its id, and how often it had been changed.
    """

    __slots__ = ("base", "coordinates", "theta", "version")

    def __init__(self, base: _BaseWeights, theta: Sequence[Tensor], coordinates: Tensor | None):
        self.base, self.theta, self.coordinates = base, theta, coordinates
        self.version = 0 if coordinates is None or coordinates.is_inference() else coordinates._version

    def is_clashing(self, other: _MovedWeights) -> bool:
        """Whether the other is another θ, and one of the models has a module whose parameters the other one's θ moves."""
        mine, theirs = self.base, other.base
        alike = mine is theirs and self.coordinates is other.coordinates and self.version == other.version
        return not (alike or (mine.movers.isdisjoint(theirs.modules) and theirs.movers.isdisjoint(mine.modules)))

    def without_values(self) -> _MovedWeights:
        """Tensors in the place of θ with which nothing can be computed."""
        return _MovedWeights(self.base, [t.detach().to("meta") for t in self.theta], None)


class _ParameterSwap:
    """Swaps a model's parameters between θ0 and θ.

    A pass may begin during another one: in a hook, in a checkpoint that reruns the model, or in another thread. So what the
    passes need is a stack of levels: the model has the parameters of the last one, and of the one before when that ends.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()  # held while the model runs: forward passes in several threads take turns
        self.levels: list[_Level] = []
        self.active: _MovedWeights | None = None  # what the model has as its parameters; None: θ0

    def show_last(self) -> None:
        """Put the parameters of the last level into the model."""
        before, after = self.active, self.levels[-1].moved if self.levels else None
        if before is after:
            return
        if before is not None:
            before.base.swap(before.theta, before.base.start)
        if after is not None:
            after.base.swap(after.base.start, after.theta)
        self.active = after


class _Level:
    """What a pass needs as the model's parameters; as a context, θ0 at first, and no other thread runs the model.

    Attributes:
        moved: θ; None: θ0.
    """

    __slots__ = ("moved", "swap")

    def __init__(self, swap: _ParameterSwap):
        self.swap = swap
        self.moved: _MovedWeights | None = None

    def __enter__(self) -> _Level:
        self.swap.lock.acquire()
        self.swap.levels.append(self)
        if self.swap.active is not None:
            self.swap.show_last()
        return self

    def __exit__(self, *_: object) -> None:
        self.swap.levels.remove(self)
        try:
            self.swap.show_last()
        finally:
            self.swap.lock.release()

    def put(self, moved: _MovedWeights) -> None:
        """Have the model compute with θ, if no level comes after this one."""
        with self.swap.lock:
            self.moved = moved
            self.swap.show_last()


_RUNNING: dict[int, dict[_ParameterSwap, _Level]] = {}  # by number, the backward passes under way, and what they need


def _begin_backward(swap: _ParameterSwap, moved: _MovedWeights, grad: Tensor) -> None:
    """Called when a backward pass starts: puts θ in, for gradient checkpoints that rerun the model.

    If the pass involves two different θ that clash, puts in meta tensors instead, so that a rerun fails rather than uses the
    wrong θ.
    """
    task = torch._C._current_graph_task_id()
    if task not in _RUNNING:
        torch.autograd.Variable._execution_engine.queue_callback(_EndOfBackward(task))
    levels = _RUNNING.setdefault(task, {})
    clashing = [(level, level.moved) for level in levels.values() if level.moved and level.moved.is_clashing(moved)]
    for level, other in clashing:
        level.put(other.without_values())
    with swap.lock:
        if swap not in levels:
            levels[swap] = _Level(swap)
            swap.levels.append(levels[swap])
        levels[swap].put(moved.without_values() if clashing else moved)


class _EndOfBackward:
    """Puts θ0 back after a backward pass: torch calls it at the end, and if the pass raises, deletes it without a call."""

    def __init__(self, task: int):
        self.task = task

    def __call__(self) -> None:
        for swap, level in _RUNNING.pop(self.task, {}).items():
            with swap.lock:
                swap.levels.remove(level)
                swap.show_last()

    def __del__(self) -> None:
        self()


def _swap_of(model: nn.Module) -> _ParameterSwap:
    return _SWAPS.get(model) or _SWAPS.setdefault(model, _ParameterSwap())


_SWAPS: weakref.WeakKeyDictionary[nn.Module, _ParameterSwap] = weakref.WeakKeyDictionary()


def _watch_backward(out: Any, swap: _ParameterSwap, moved: _MovedWeights) -> None:
    """Notify the swap when a backward pass reaches what the model returned.

    Raises:
        ValueError: that has a parameter of the model, or a view of one.
        TypeError: it can run a module whose parameters are moved, or no tensor with a gradient is found in it.
    """
    leaves = [out] if isinstance(out, Tensor) else tree_leaves(out)
    tensors = [t for t in leaves if isinstance(t, Tensor)]
    _refuse_parameters(tensors, moved.theta)
    if len(tensors) < len(leaves):
        tensors = _look_into(leaves, moved)
    for t in tensors:
        if t.grad_fn is not None:  # also where only the input needs a gradient
            t.register_hook(partial(_begin_backward, swap, moved))


def _check_model(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, allowed a torch.nn.Module")
    if any(isinstance(m, Subspace) for m in model.modules()):
        raise TypeError("model: there is a Subspace in it already; give the model itself (its .model) to the new one")
    if isinstance(model, torch.nn.parallel.DistributedDataParallel):
        raise TypeError("model: wrap the Subspace in DistributedDataParallel, not the other way round")
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError("model: torch.jit modules are not supported")
    for name, p in model.named_parameters():
        if nn.parameter.is_lazy(p) or p.device.type == "meta":
            raise ValueError(f"model: {name} has no values yet: initialise the model, or load its weights, first")
        if is_sharded(p):
            raise TypeError(f"model: {name} is sharded: make the Subspace first, and give it to fully_shard as a whole")
        if is_flattened(p):
            raise TypeError(f"model: {name} is {FLATTENED}")
        if p.layout != torch.strided:  # whose values no checksum can read
            raise TypeError(f"model: {name} has the layout {p.layout}: give the model dense parameters first")
        if type(p).__torch_dispatch__ is not Tensor.__torch_dispatch__:  # whose bits only the class itself can read
            raise TypeError(f"model: {name} is a {type(p).__name__}, a subclass of Tensor without plain values: give the "
                            f"model plain parameters first")  # fmt: skip


def _as_patterns(params: str | Iterable[str]) -> list[str]:
    """Names or patterns of parameters as a list."""
    patterns: Any = [params] if isinstance(params, str) else list(params) if isinstance(params, Iterable) else [params]
    if bad := [one for one in patterns if not isinstance(one, str)]:
        got = bad[0] if isinstance(bad[0], Number) else type(bad[0]).__name__
        raise TypeError(f"params: got {got}, allowed names of parameters or patterns such as 'head.*'")
    if not patterns:
        raise ValueError("params: got no names, allowed at least one, or None for all floating-point parameters")
    return patterns


def _choose(model: nn.Module, patterns: list[str] | None) -> list[tuple[str, ...]]:
    """Names of the parameters to move, in the model's order; each has several where weights are tied."""
    found: dict[int, tuple[nn.Parameter, list[str]]] = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        found.setdefault(id(p), (p, []))[1].append(name)
    if patterns is None:
        chosen = [(p, names) for p, names in found.values() if p.is_floating_point() or p.is_complex()]
    else:
        chosen = [(p, names) for p, names in found.values() if any(_fits(n, patterns) for n in names)]
        every = [n for _, names in found.values() for n in names]
        if lost := [pattern for pattern in patterns if not any(_fits(n, [pattern]) for n in every)]:
            raise ValueError(f"params: no parameter of the model is named {', '.join(map(repr, lost))}")
    if not sum(p.numel() for p, _ in chosen):
        raise ValueError("model: got no floating-point parameters, a Subspace needs at least one")
    if bad := [f"{names[0]} ({p.dtype})" for p, names in chosen if not p.is_floating_point()]:
        raise TypeError(f"params: got {', '.join(bad)}, allowed real floating-point parameters")
    if bad := [f"{names[0]} ({p.dtype})" for p, names in chosen if torch.finfo(p.dtype).bits < 16]:
        raise TypeError(f"params: got {', '.join(bad)}, allowed dtypes of 16 to 64 bits: choose others by params")
    scripted = tuple(f"{path}." for path, m in model.named_modules() if isinstance(m, torch.jit.ScriptModule))
    if bad := [name for _, names in chosen for name in names if name.startswith(scripted)]:
        raise TypeError(f"model: {bad[0]} is in a torch.jit module, whose parameters cannot be moved: give the model "
                        f"without torch.jit, or choose other parameters by params")  # fmt: skip
    if len(devices := {str(p.device) for p, _ in chosen}) > 1:
        raise ValueError(f"params: got parameters on {', '.join(sorted(devices))}, allowed one device")
    return [tuple(names) for _, names in chosen]


def _fits(name: str, patterns: Iterable[str]) -> bool:
    return any(name == pattern or fnmatchcase(name, pattern) for pattern in patterns)


def _refuse_parameters(found: list[Tensor], theta: Sequence[Tensor]) -> None:
    """Raise ValueError if what the model returned shares memory with one of its parameters."""
    ours = {p.data_ptr() for p in theta}  # each of these has its own storage
    if any(t.untyped_storage().data_ptr() in ours for t in found if t.layout == torch.strided and t.numel()):
        raise ValueError("the model returns a parameter, or a view of one, which a Subspace makes anew in every forward "
                         "pass: return a clone() of it")  # fmt: skip


def _look_into(leaves: Iterable[Any], moved: _MovedWeights) -> list[Tensor]:
    """Tensors that a model returns, also in objects that are not pytrees, and in what functions and generators refer to.

    Raises:
        TypeError: there is a module whose parameters are moved; or θ needs a gradient, none of the tensors has a graph, and
            there is an object that cannot be searched.
    """
    tensors, closed, todo = [], [], [(leaf, leaf) for leaf in leaves]
    seen: dict[int, Any] = {}  # by id; holds the objects, so that no id is used again
    while todo:
        one, leaf = todo.pop()
        kind = type(one)
        if id(one) in seen or issubclass(kind, _PLAIN):
            continue
        seen[id(one)] = one
        if issubclass(kind, Tensor):
            tensors.append(one)
        elif issubclass(kind, nn.Module) and not moved.base.movers.isdisjoint(one.modules()):
            raise TypeError(f"the model returns something ({type(leaf).__name__}) that can run its module {kind.__name__} "
                            "after the forward pass, with θ0 and not with θ: run it in forward, and return tensors")
        elif (inside := _inside(one)) is not None:
            todo += [(part, leaf) for part in inside]
        else:
            closed.append(kind.__name__)
    if closed and moved.theta[0].requires_grad and not any(t.grad_fn is not None for t in tensors):
        raise TypeError(f"the model returns {', '.join(sorted(set(closed)))}, in which a Subspace finds no tensor with a "
                        f"gradient: return tensors, or register the class with torch.utils._pytree")  # fmt: skip
    return tensors


_ENDLESS = (ModuleType, TracebackType, Logger, IOBase)  # lead to much of the process, and so to the model
_PLAIN = (type(None), str, bytes, type, CodeType, np.ndarray, np.generic, torch.dtype, torch.device, Number, *_ENDLESS)


def _inside(one: Any) -> list[Any] | None:
    """What an object refers to; None for a module, and for an object that hides it.

    Not the globals of functions and frames, which lead to much of the process.
    """
    if isinstance(one, nn.Module):
        return None
    if isinstance(one, FunctionType):
        return [one.__closure__, one.__defaults__, one.__kwdefaults__, one.__dict__]
    if isinstance(one, FrameType):  # of a generator, in Python 3.10
        return list(one.f_locals.values())
    held = [part for part in gc.get_referents(one) if not isinstance(part, type)]
    return held or ([] if isinstance(one, Collection) else None)


def _is_lazy(one: Any) -> bool:
    """Whether it may run later; of what torch.compile can trace."""
    return callable(one) or isinstance(one, Iterator)


def _describe(p: Tensor | None) -> str:
    return "nothing" if p is None else f"{tuple(p.shape)} on {p.device}" + ", sharded" * is_sharded(p)


def _words(checksum: str, device: torch.device | str = "cpu") -> Tensor:
    """The bytes of a checksum, (8,) float32, for a buffer: DistributedDataParallel broadcasts worker 0's buffers.

    Averaging equal buffers, as torch.optim.swa_utils does, gives the same bytes within rounding.
    """
    return torch.tensor(list(bytes.fromhex(checksum)), dtype=torch.float32, device=device)


def _keep_own(sub: Subspace, state_dict: dict, prefix: str, local_metadata: dict) -> None:
    """Leave the model's entries out of a state_dict."""
    for key in [key for key in state_dict if key.startswith(f"{prefix}model.")]:
        del state_dict[key]


def _expect_own(sub: Subspace, incompatible) -> None:
    """Do not report the model's entries as missing when a state_dict is loaded."""
    missing = incompatible.missing_keys
    missing[:] = [key for key in missing if not key.startswith(f"{sub._prefix}model.")]


def _write_whole(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all."""
    temporary = Path(f"{path}.{token_hex(8)}.part")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink()


def _read(path: Path) -> tuple[dict, Tensor]:
    """Name of the basis and coordinates in a file of ``Subspace.save``."""
    data = path.read_bytes()
    try:
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        name, entry = json.loads(header["__metadata__"][METADATA]), header["coordinates"]
        values = np.frombuffer(data[8 + length :], _DTYPES[entry["dtype"]])
        if {"dim", "seed", "distribution", "partition", "params"} - name.keys() or len(values) != name["dim"]:
            raise ValueError("incomplete")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a file of Subspace.save, or a damaged one") from error
    return name, torch.from_numpy(values.astype(values.dtype.newbyteorder("=")))
