"""Subspace: a model whose parameters are θ = θ0 + Φᵀ c, so that any torch optimizer trains the d coordinates c."""

from __future__ import annotations

import json
import os
import threading
import weakref
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from hashlib import blake2b
from numbers import Number
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from rbd import kernels
from rbd.basis import check_word
from rbd.compartment import BasisSpec
from rbd.distributed.exchange import digest
from rbd.distributed.fsdp import is_sharded
from rbd.distribution import distribution as distribution_of
from rbd.kernels.compiled import sum_dtype
from rbd.partition import partition as partition_of
from rbd.philox import STREAM_VERSION

OUTSIDE = -1  # torch's id of the backward pass when none is running
METADATA = "rbd.Subspace"  # key in the header of a file
_DTYPES: dict[str, np.dtype] = {"F32": np.dtype("<f4"), "F64": np.dtype("<f8")}  # names that safetensors gives them
_CHANGED = ("{}: got {}, allowed {}: the model was changed without the Subspace; move both by sub.to(...), shard both by "
            "fully_shard(sub), and wrap a model anew whose parameters are replaced")

Owner = tuple[dict[str, Any], str, int]  # a module's parameters, the name of one, and its number among those moved


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
        seed, distribution, partition: as in RBD, but "countsketch" is the default distribution: its cost does not depend on
            d, where the dense ones take d D random numbers in each forward and in each backward pass.
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
        self._params = None if params is None else [params] if isinstance(params, str) else list(params)
        self._names = _choose(model, self._params)  # of each moved parameter, several where weights are tied
        start = [model.get_parameter(names[0]) for names in self._names]
        layout = tuple((names[0], p.numel()) for names, p in zip(self._names, start))
        cut = partition_of(partition, layout, dim if dim is None else check_word("dim", dim))
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
    _found: _Found | None = None  # θ0, when last looked for

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the model gives with the parameters θ.

        Raises:
            RuntimeError: the model's parameters were replaced, moved or sharded without the Subspace, or, in the first call,
                another worker of DistributedDataParallel has other weights θ0.
            ValueError: the model returns a parameter, or a view of one.
            TypeError: the model returns objects in which it finds no tensor with a gradient.
        """
        if torch.compiler.is_compiling():
            return self._follow(args, kwargs)
        if not self._compared:
            self._compare()
        place = _place_of(self._modules["model"])
        with place.lock:
            earlier = place.standing if torch._C._current_graph_task_id() != OUTSIDE else None  # a checkpoint around all
            place.restore()
            moved = self._moved()
            place.put(moved)
            try:
                out = self._modules["model"](*args, **kwargs)
            finally:
                place.restore()
                if earlier is not None:
                    place.put(earlier)
        leaves = [out] if isinstance(out, Tensor) else tree_leaves(out)
        found = [t for t in leaves if isinstance(t, Tensor)]
        _refuse_parameters(found, moved.theta)
        if moved.theta[0].requires_grad:
            for t in found if len(found) == len(leaves) else _look_into(leaves):
                if t.grad_fn is not None:
                    t.register_hook(partial(place.enter, moved))
        return out

    def _moved(self) -> _Moved:
        found, c = self._find(), self._parameters["coordinates"]
        theta = _Theta.apply(c, self._spec, found)
        return _Moved(found, theta, (id(c), c._version if theta[0].requires_grad else 0))

    def _follow(self, args: tuple, kwargs: dict) -> Any:
        """``forward`` by operations that torch.compile can follow."""
        _, start = self._walk()
        u = kernels.differentiable_expand(self.coordinates, self._spec)  # (D,)
        moves = [v.view(p.shape) for p, v in zip(start, u.split([p.numel() for p in start]))]
        theta = {names[0]: (p + v).to(p.dtype) for names, p, v in zip(self._names, start, moves)}
        return torch.func.functional_call(self.model, theta, args, kwargs)

    def _find(self) -> _Found:
        """θ0 as the model holds it now."""
        found = self._found
        if found is None or not found.stands():
            owners, start = self._walk()
            sizes, device = [p.numel() for p in start], start[0].device
            steps = [(self._modules, "model", self.model)]
            steps += [(m._modules, name, child) for m in self.model.modules() for name, child in m._modules.items()]
            steps += [(params, name, start[i]) for params, name, i in owners]
            lists = [m for m in self.model.modules() if isinstance(m, nn.RNNBase)]
            found = self._found = _Found(device, start, owners, steps, lists, kernels.prepare(self._spec, sizes, device))
        return found

    def _walk(self) -> tuple[list[Owner], list[Tensor]]:
        """The modules that own moved parameters, and θ0, whose tensors have to fit the coordinates."""
        owners, start, device = [], [], self.coordinates.device
        for i, (paths, names, shape) in enumerate(zip(self._paths, self._names, self._shapes)):
            p: Any = None
            try:
                for path, name in paths:
                    module: Any = self._modules["model"]
                    for part in path:
                        module = module._modules[part]
                    owners.append((module._parameters, name, i))
                    p = module._parameters[name]
            except (KeyError, AttributeError):
                p = None
            if p is None or p.shape != shape or p.device != device or is_sharded(p):
                raise RuntimeError(_CHANGED.format(names[0], _describe(p), f"{tuple(shape)} on {device}"))
            start.append(p)
        return owners, start

    def _compare(self) -> None:
        """Check once that θ0 equals that of worker 0, whose checksum DistributedDataParallel has broadcast."""
        words = self._of_first.tolist()  # a Subspace pickled by rbd 0.2 has two, of 32 bits
        if "".join(f"{round(word):0{16 // len(words)}x}" for word in words) != self._checksum:
            raise RuntimeError("the weights θ0 differ from those of worker 0: give all workers the same, then wrap them")
        self._compared = True

    def _sum_up(self) -> str:
        """Checksum, 16 hexadecimal digits, of all parameters and of which of them are moved."""
        moved = {names[0] for names in self._names}
        named = self.model.named_parameters()
        facts = [(name, name in moved, tuple(p.shape), str(p.dtype), digest([p])) for name, p in named]
        return blake2b(repr(facts).encode(), digest_size=8).hexdigest()

    def check(self) -> None:
        """Is θ0 what it was when the Subspace was made?

        Raises:
            RuntimeError: it has changed.
        """
        _place_of(self.model).restore()
        if any(map(is_sharded, self.model.parameters())):  # a worker has a part of them
            return
        if self._sum_up() != self._checksum:
            raise RuntimeError("the model's weights θ0 have changed since the Subspace was made, so the coordinates do not "
                               "belong to them: restore the weights, or make a new Subspace")  # fmt: skip

    @torch.no_grad()
    def merge(self) -> nn.Module:
        """Write θ into the model and return it. It is the new θ0, the coordinates are zeros: the Subspace computes the same.

        Raises:
            RuntimeError: θ0 has changed, or is sharded.
        """
        if hasattr(self, "unshard"):
            raise RuntimeError("merge is not supported under fully_shard: save the coordinates, and load them elsewhere")
        self.check()
        _, start = self._walk()
        for p, moved in zip(start, kernels.shift(self.coordinates, self._spec, start)):
            p.copy_(moved)
        self.coordinates.zero_()
        self._set_checksum()
        return self.model

    def _set_checksum(self) -> None:
        self._checksum = self._sum_up()
        self._of_first = _words(self._checksum, self.coordinates.device)

    def get_extra_state(self) -> dict:
        """The name of the basis, and the checksum of θ0."""
        self.check()
        return {"stream_version": STREAM_VERSION, "dim": self._spec.dim, "size": self._spec.size, "seed": self._spec.seed,
                "distribution": self._spec.distribution.name, "partition": self._partition, "params": self._params,
                "checksum": self._checksum}  # fmt: skip

    def set_extra_state(self, state: dict) -> None:
        """Does nothing: the state was compared before the coordinates were loaded."""

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        self._prefix = prefix
        if saved := state_dict.get(prefix + "_extra_state"):
            for name, here in self.get_extra_state().items():
                if name != "params" and saved.get(name) != here:
                    what = "model weights θ0 or params" if name == "checksum" else "basis"
                    raise ValueError(f"coordinates of another {what}: {name}: got {saved.get(name)}, allowed {here}")
        c = state_dict.get(prefix + "coordinates")
        if isinstance(c, Tensor) and c.is_floating_point():  # which assign=True would take as it is
            state_dict[prefix + "coordinates"] = c.to(self.coordinates.dtype)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def save(self, path: str | os.PathLike) -> None:
        """Write the coordinates and the name of the basis: a safetensors file of 4 d bytes (8 d of float64) and a header.

        Raises:
            RuntimeError: θ0 has changed.
        """
        whole = self.coordinates.full_tensor() if is_sharded(self.coordinates) else self.coordinates  # type: ignore[operator]
        c = whole.detach().cpu().numpy()
        kind = "F64" if c.dtype == np.float64 else "F32"
        values = c.astype(_DTYPES[kind]).tobytes()
        header = json.dumps({
            "__metadata__": {"format": "pt", METADATA: json.dumps(self.get_extra_state())},
            "coordinates": {"dtype": kind, "shape": [len(c)], "data_offsets": [0, len(values)]},
        }).encode()  # fmt: skip
        header += b" " * (-len(header) % 8)
        part = Path(f"{path}.{os.getpid()}.part")
        part.write_bytes(len(header).to_bytes(8, "little") + header + values)
        os.replace(part, path)

    @classmethod
    def load(cls, path: str | os.PathLike, model: nn.Module) -> Subspace:
        """The Subspace that ``save`` wrote, around the model that it was made for.

        Raises:
            OSError: there is no such file.
            ValueError: it holds something else, or coordinates for other weights θ0.
        """
        name, coordinates = _read(Path(path))
        sub = cls(model, name["dim"], name["seed"], name["distribution"], name["partition"], name["params"])
        sub.load_state_dict({"coordinates": coordinates, "_extra_state": name})
        return sub

    def named_parameters(self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True):
        """The coordinates alone; the model's own are frozen."""
        yield f"{prefix}.coordinates" if prefix else "coordinates", self.coordinates

    def _apply(self, fn, recurse: bool = True):
        """To another device or dtype; half precision is for the model, coordinates stay float32."""
        _place_of(self.model).restore()
        before, c = {p.dtype for p in self.model.parameters()}, self.coordinates.detach()
        super()._apply(fn, recurse)
        if self.coordinates.dtype != (wanted := sum_dtype(self.coordinates.dtype)):
            self.coordinates.grad = None
            self.coordinates.data = c.to(self.coordinates.device, wanted)
        if {p.dtype for p in self.model.parameters()} != before:
            self._set_checksum()
        return self

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_found": None}  # copies have a model of their own

    def extra_repr(self) -> str:
        spec = self._spec
        return (f"dim={spec.dim}, size={spec.size}, seed={spec.seed}, distribution={spec.distribution.name!r}, "
                f"partition={self._partition!r}")  # fmt: skip


class _Theta(torch.autograd.Function):
    """θ0 + Φᵀ c as tensors. Backward projects the gradients of all of them at once; no other graph leads to c."""

    @staticmethod
    def forward(ctx: Any, c: Tensor, spec: BasisSpec, found: _Found) -> tuple[Tensor, ...]:
        ctx.of = spec, found, c.dtype
        ctx.set_materialize_grads(False)
        made = found.prepared and found.prepared.shift(c, found.start)
        return tuple(kernels.shift(c, spec, found.start) if made is None else made)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple:
        spec, found, dtype = ctx.of
        again = torch.is_grad_enabled()  # create_graph=True
        c = found.prepared.project(grads, dtype) if found.prepared and not again else None
        if c is None:
            g = _join(grads, found.start, dtype)
            c = (kernels.differentiable_project if again else kernels.project)(g, spec).to(dtype)
        return c, None, None


def _join(grads: Sequence[Tensor | None], start: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Gradients of all parameters as one vector, (D,), zeros where there is none."""
    parts = [torch.zeros_like(p, dtype=dtype) if v is None else v.to_dense() if v.is_sparse else v
             for p, v in zip(start, grads)]  # fmt: skip
    return torch.cat([v.reshape(-1) for v in parts])


@dataclass(frozen=True)
class _Found:
    """θ0, and where the model holds it."""

    device: torch.device
    start: list[Tensor]
    owners: list[Owner]
    steps: list[tuple[dict, str, Any]]  # from the model to its parameters: a dictionary, a key, and what is there
    lists: list[nn.RNNBase]  # modules that keep a list of their parameters
    prepared: Any  # what kernels.prepare gave

    def stands(self) -> bool:
        """Whether the model still holds all of it."""
        for of, name, one in self.steps:
            if of.get(name) is not one:
                return False
        return self.start[0].device == self.device

    def swap(self, old: Sequence[Tensor], new: Sequence[Tensor]) -> None:
        """Put the new tensors in the place of the old ones, except where others (such as FSDP) have put their own."""
        for params, name, i in self.owners:
            if params.get(name) is old[i]:
                params[name] = new[i]
        for module in self.lists:
            module._flat_weights = [getattr(module, weight, None) for weight in module._flat_weights_names]


class _Moved:
    """θ of one forward pass, and where it belongs."""

    __slots__ = ("found", "key", "theta")

    def __init__(self, found: _Found, theta: Sequence[Tensor], key: tuple):
        self.found, self.theta, self.key = found, theta, key


class _Place:
    """What a model has as its parameters: θ0, or θ during a pass."""

    def __init__(self) -> None:
        self.lock = threading.RLock()  # held while the model runs: forward passes in several threads take turns
        self.standing: _Moved | None = None  # None: θ0
        self.task = OUTSIDE  # the backward pass that put it there

    def put(self, moved: _Moved) -> None:
        """Exchange θ0 for θ."""
        self.restore()
        moved.found.swap(moved.found.start, moved.theta)
        self.standing, self.task = moved, torch._C._current_graph_task_id()

    def restore(self) -> None:
        """Exchange θ for θ0."""
        if (moved := self.standing) is not None:
            moved.found.swap(moved.theta, moved.found.start)
            self.standing = None

    def enter(self, moved: _Moved, grad: Tensor) -> None:
        """A backward pass begins, in which checkpoints may run parts of the model again: with θ.

        Where it passes through two θ at once, it is unknown which of them they need: they then get tensors without values,
        and fail.
        """
        with self.lock:
            other = self.standing if self.task == torch._C._current_graph_task_id() else None
            if other is not None and other.key != moved.key:
                moved = _Moved(moved.found, [t.detach().to("meta") for t in moved.theta], ())
            self.put(moved)
        torch.autograd.Variable._execution_engine.queue_callback(self.leave)

    def leave(self) -> None:
        with self.lock:
            self.restore()


def _place_of(model: nn.Module) -> _Place:
    return _PLACES.get(model) or _PLACES.setdefault(model, _Place())


_PLACES: weakref.WeakKeyDictionary[nn.Module, _Place] = weakref.WeakKeyDictionary()


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
        if type(p).__torch_dispatch__ is not Tensor.__torch_dispatch__:  # whose bits only the class itself can read
            raise TypeError(f"model: {name} is a {type(p).__name__}, a subclass of Tensor without plain values: give the "
                            f"model plain parameters first")  # fmt: skip


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
    if len(devices := {str(p.device) for p, _ in chosen}) > 1:
        raise ValueError(f"params: got parameters on {', '.join(sorted(devices))}, allowed one device")
    return [tuple(names) for _, names in chosen]


def _fits(name: str, patterns: Iterable[str]) -> bool:
    return any(name == pattern or fnmatchcase(name, pattern) for pattern in patterns)


def _refuse_parameters(found: list[Tensor], theta: Sequence[Tensor]) -> None:
    """ValueError if what the model returned shares memory with one of its parameters."""
    ours = {p.data_ptr() for p in theta}  # each has a storage of its own
    if any(t.untyped_storage().data_ptr() in ours for t in found if t.layout == torch.strided and t.numel()):
        raise ValueError("the model returns a parameter, or a view of one, which a Subspace makes anew in every forward "
                         "pass: return a clone() of it")  # fmt: skip


def _look_into(leaves: Iterable[Any]) -> list[Tensor]:
    """Tensors that a model returns, also those in objects that are no pytrees: in their items, attributes and slots.

    Raises:
        TypeError: none of them needs a gradient, and there is an object that hides what it has.
    """
    tensors, closed, todo = [], [], list(leaves)
    seen: dict[int, Any] = {}  # with the objects, whose ids would be given away otherwise
    while todo:
        one = todo.pop()
        if id(one) in seen or isinstance(one, _PLAIN):
            continue
        seen[id(one)] = one
        if isinstance(one, Tensor):
            tensors.append(one)
        elif (inside := _inside(one)) is not None:
            todo += inside
        else:
            closed.append(type(one).__name__)
    if closed and not any(t.grad_fn is not None for t in tensors):
        raise TypeError(f"the model returns {', '.join(sorted(set(closed)))}, in which a Subspace finds no tensor with a "
                        f"gradient: return tensors, or register the class with torch.utils._pytree")  # fmt: skip
    return tensors


_PLAIN = (type(None), str, bytes, range, Number, np.generic, np.ndarray, torch.dtype, torch.device, type, ModuleType)


def _inside(one: Any) -> list[Any] | None:
    """What an object holds; None for one that does not show it."""
    if isinstance(one, nn.Module):
        return None
    held = list(getattr(one, "__dict__", {}).values())
    slots = [name for kind in type(one).__mro__ for name in _slots(kind)]
    held += [getattr(one, name) for name in slots if hasattr(one, name)]
    if isinstance(one, Mapping):
        return [*held, *one.values()]
    return [*held, *one] if isinstance(one, Collection) else held or None


def _slots(kind: type) -> list[str]:
    names = kind.__dict__.get("__slots__", ())
    return [names] if isinstance(names, str) else [name for name in names if name not in ("__dict__", "__weakref__")]


def _describe(p: Tensor | None) -> str:
    return "nothing" if p is None else f"{tuple(p.shape)} on {p.device}" + ", sharded" * is_sharded(p)


def _words(checksum: str, device: torch.device | str = "cpu") -> Tensor:
    """The bytes of a checksum, (8,) float32: buffers are what DistributedDataParallel brings from worker 0.

    The averages of buffers that torch.optim.swa_utils takes leave them as they are, within rounding.
    """
    return torch.tensor(list(bytes.fromhex(checksum)), dtype=torch.float32, device=device)


def _keep_own(sub: Subspace, state_dict: dict, prefix: str, local_metadata: dict) -> None:
    """Leave the model's entries out of a state_dict."""
    for key in [key for key in state_dict if key.startswith(f"{prefix}model.")]:
        del state_dict[key]


def _expect_own(sub: Subspace, incompatible) -> None:
    """Do not report them as missing when one is loaded."""
    missing = incompatible.missing_keys
    missing[:] = [key for key in missing if not key.startswith(f"{sub._prefix}model.")]


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
