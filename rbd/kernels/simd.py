"""Vectors of 16 lanes as Numba values, so that a kernel is written in vector instructions.

LLVM maps a vector to the registers of the machine (one of AVX-512, two of AVX2, four of NEON). Only `permute` names
instructions of some machines. Only for use inside ``numba.njit`` functions.
"""

from __future__ import annotations

import operator

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic, models, overload, register_model

LANES = 16
_ELEMENTS = {"f32": ir.FloatType(), "f64": ir.DoubleType(), "u8": ir.IntType(8), "u32": ir.IntType(32),
             "u64": ir.IntType(64)}  # fmt: skip
_INDEX = ir.IntType(32)
_AVX2 = {"sse", "sse2", "sse3", "ssse3", "sse4.1", "sse4.2", "avx", "avx2"}  # for LLVM, AVX2 has all of these
_NEEDED = {"avx2": _AVX2, "avx512f": _AVX2 | {"fma", "f16c", "avx512f"}}


class Vector(types.Type):
    """The Numba type of a vector of 16 elements: "f32", "f64", "u8", "u32" or "u64"."""

    def __init__(self, element: str):
        self.element = element
        super().__init__(name=f"Vector({element})")

    @property
    def is_float(self) -> bool:
        return self.element[0] == "f"


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, ir.VectorType(_ELEMENTS[fe_type.element], LANES))


f32, f64, u8, u32, u64 = (Vector(element) for element in _ELEMENTS)
_OF_SCALAR = {types.float32: f32, types.float64: f64, types.uint8: u8, types.uint32: u32, types.uint64: u64}


def _operator(symbol, integer: str | None, floating: str | None) -> None:
    """Give vectors of one type the operator, lane by lane, as an LLVM instruction."""

    @intrinsic
    def emit(typingctx, a, b):
        name = floating if a.is_float else integer
        assert name
        return a(a, b), lambda context, builder, sig, args: getattr(builder, name)(*args)

    @overload(symbol)
    def implementation(a, b):
        if isinstance(a, Vector) and a == b and (floating if a.is_float else integer):
            return lambda a, b: emit(a, b)


_operator(operator.add, "add", "fadd")
_operator(operator.sub, "sub", "fsub")
_operator(operator.mul, "mul", "fmul")
_operator(operator.truediv, None, "fdiv")
_operator(operator.xor, "xor", None)
_operator(operator.and_, "and_", None)
_operator(operator.or_, "or_", None)
_operator(operator.lshift, "shl", None)
_operator(operator.rshift, "lshr", None)


def _constant(vector: ir.VectorType, values) -> ir.Constant:
    return ir.Constant(vector, [ir.Constant(vector.element, v) for v in values])


def _emit_splat(context, builder, x, given: types.Type, scalar: types.Type):
    vector = context.get_value_type(_OF_SCALAR[scalar])
    x = context.cast(builder, x, given, scalar)
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), x, ir.Constant(_INDEX, 0))
    return builder.shuffle_vector(first, first, _constant(ir.VectorType(_INDEX, LANES), [0] * LANES))


def _splat(scalar: types.Type):
    @intrinsic
    def splat(typingctx, x):
        def generate(context, builder, sig, args):
            return _emit_splat(context, builder, args[0], sig.args[0], scalar)

        return _OF_SCALAR[scalar](x), generate

    return splat


splat_f32 = _splat(types.float32)  # scalar -> the same number in every lane
splat_u32 = _splat(types.uint32)
splat_u64 = _splat(types.uint64)


_U64_ORDER = [*range(0, LANES, 2), *range(1, LANES, 2)]  # lanes at the places of a u64 vector, for narrow


@intrinsic
def lane_numbers(typingctx):
    """0, 1, ..., 15 as u64."""
    return u64(), lambda context, builder, sig, args: _constant(context.get_value_type(u64), _U64_ORDER)


def _convert(source: Vector, result: Vector, instruction: str):
    @intrinsic
    def convert(typingctx, x):
        if x != source:
            return None

        def generate(context, builder, sig, args):
            return getattr(builder, instruction)(args[0], context.get_value_type(result))

        return result(x), generate

    return convert


@intrinsic
def narrow(typingctx, x):
    """The lower 32 bits of u64 lanes. Those of the odd lanes replace the upper halves of the even ones."""

    def generate(context, builder, sig, args):
        halves = builder.bitcast(args[0], ir.VectorType(_INDEX, 2 * LANES))
        lower = [2 * _U64_ORDER.index(lane) for lane in range(LANES)]
        return builder.shuffle_vector(halves, halves, _constant(ir.VectorType(_INDEX, LANES), lower))

    return u32(x), generate


widen = _convert(u8, u32, "zext")
float_of = _convert(u32, f32, "sitofp")  # the number, read as a signed integer
float_bits = _convert(u32, f32, "bitcast")  # the same bits as float32
bits_of = _convert(f32, u32, "bitcast")


@intrinsic
def shift_signed(typingctx, x, count):
    """x >> count of u32 lanes, filled with copies of the top bit."""
    return x(x, count), lambda context, builder, sig, args: builder.ashr(*args)


@intrinsic
def like(typingctx, x, model):
    """x (f32) in the precision of model: itself, or widened to f64."""
    if model == f32:
        return f32(x, model), lambda context, builder, sig, args: args[0]
    return f64(x, model), lambda context, builder, sig, args: builder.fpext(args[0], context.get_value_type(f64))


@intrinsic
def as_elements(typingctx, x, pointer):
    """x (f64) in the precision of what the pointer points to: itself, or rounded to f32."""
    if _OF_SCALAR[pointer.dtype] == f64:
        return f64(x, pointer), lambda context, builder, sig, args: args[0]
    return f32(x, pointer), lambda context, builder, sig, args: builder.fptrunc(args[0], context.get_value_type(f32))


@intrinsic
def is_double(typingctx, pointer):
    """Whether it points to float64: a constant, so that the branch that is not taken leaves no code."""
    double = _OF_SCALAR[pointer.dtype] == f64
    return types.boolean(pointer), lambda context, builder, sig, args: context.get_constant(types.boolean, double)


@intrinsic
def splat_like(typingctx, x, pointer):
    """The scalar x in every lane, in the precision of what the pointer points to."""

    def generate(context, builder, sig, args):
        return _emit_splat(context, builder, args[0], sig.args[0], pointer.dtype)

    return _OF_SCALAR[pointer.dtype](x, pointer), generate


@intrinsic
def pointer(typingctx, array):
    """Address of the first element of a contiguous array, which the caller must keep alive.

    Passed on in place of the array: Numba counts references to arrays at calls, and each count empties the registers.
    """

    def generate(context, builder, sig, args):
        return context.make_array(array)(context, builder, args[0]).data

    return types.CPointer(array.dtype)(array), generate


def _address(context, builder, pointer, index, given: types.Type, vector):
    index = context.cast(builder, index, given, types.intp)
    return builder.bitcast(builder.gep(pointer, [index]), vector.as_pointer())


@intrinsic
def load(typingctx, pointer, index):
    """The 16 elements from pointer[index] on (u64: in their order in memory); bounds are not checked."""
    result = _OF_SCALAR[pointer.dtype]

    def generate(context, builder, sig, args):
        vector = context.get_value_type(result)
        loaded = builder.load(_address(context, builder, args[0], args[1], sig.args[1], vector))
        loaded.align = pointer.dtype.bitwidth // 8
        return loaded

    return result(pointer, index), generate


@intrinsic
def store(typingctx, pointer, index, x):
    """Put 16 elements from pointer[index] on (u64: in the vector's order); bounds are not checked."""

    def generate(context, builder, sig, args):
        stored = builder.store(args[2], _address(context, builder, args[0], args[1], sig.args[1], args[2].type))
        stored.align = pointer.dtype.bitwidth // 8
        return context.get_dummy_value()

    return types.void(pointer, index, x), generate


def _permute_halves(builder, table, index):
    """table[index mod 16] by the permutes of AVX2, of 8 lanes, which use only the lower 3 bits of an index."""
    eight = builder.and_(index, _constant(index.type, [LANES // 2] * LANES))
    is_upper = builder.icmp_unsigned("!=", eight, _constant(index.type, [0] * LANES))
    halves = [[_take_half(builder, x, part) for part in range(2)] for x in (table, index)]
    lower, upper = ([_call(builder, "llvm.x86.avx2.permps", t.type, t, i) for i in halves[1]] for t in halves[0])
    both = _constant(ir.VectorType(_INDEX, LANES), range(LANES))
    return builder.select(is_upper, *(builder.shuffle_vector(*x, both) for x in (upper, lower)))


def _take_half(builder, x, part: int):
    """8 of the 16 lanes: the first ones, or the last."""
    lanes = _constant(ir.VectorType(_INDEX, LANES // 2), range(LANES // 2 * part, LANES // 2 * (part + 1)))
    return builder.shuffle_vector(x, x, lanes)


def _call(builder, name: str, returned: ir.Type, *args):
    """Call an LLVM intrinsic."""
    signature = ir.FunctionType(returned, [x.type for x in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, signature, name), args)


def _can_name(context, feature: str) -> bool:
    """Whether an LLVM feature is on and none that it needs is off: LLVM ends the process if it lacks an instruction."""
    triple, _, features = context.codegen().magic_tuple()
    given = set(features.split(","))
    return triple.startswith("x86_64") and f"+{feature}" in given and not given & {f"-{name}" for name in _NEEDED[feature]}


def _permute_by_pattern(builder, table, index):
    """The same lane by lane, for other machines and elements."""
    index = builder.and_(index, _constant(index.type, [LANES - 1] * LANES))
    out = ir.Constant(table.type, ir.Undefined)
    for lane in [ir.Constant(_INDEX, lane) for lane in range(LANES)]:
        out = builder.insert_element(out, builder.extract_element(table, builder.extract_element(index, lane)), lane)
    return out


@intrinsic
def permute(typingctx, table, index):
    """table[index mod 16] in every lane."""

    def generate(context, builder, sig, args):
        if table == f32 and _can_name(context, "avx512f"):  # its permute uses only the lower 4 bits of an index
            return _call(builder, "llvm.x86.avx512.permvar.sf.512", args[0].type, *args)
        return (_permute_halves if table == f32 and _can_name(context, "avx2") else _permute_by_pattern)(builder, *args)

    return table(table, index), generate


@intrinsic
def fma(typingctx, a, b, c):
    """a b + c, rounded once."""

    def generate(context, builder, sig, args):
        return _call(builder, f"llvm.fma.v{LANES}{a.element}", args[0].type, *args)

    return a(a, b, c), generate


@intrinsic
def smaller(typingctx, a, b):
    """The smaller one of two u32 lanes."""

    def generate(context, builder, sig, args):
        return builder.select(builder.icmp_unsigned("<", *args), *args)

    return a(a, b), generate


@intrinsic
def add_lanes(typingctx, x):
    """The sum of the 16 lanes, halves first: a fixed order."""

    def generate(context, builder, sig, args):
        total, width = args[0], LANES
        while width > 1:
            width //= 2
            half = ir.VectorType(_INDEX, width)
            low = builder.shuffle_vector(total, total, _constant(half, range(width)))
            high = builder.shuffle_vector(total, total, _constant(half, range(width, 2 * width)))
            total = builder.fadd(low, high)
        return builder.extract_element(total, ir.Constant(_INDEX, 0))

    return {f32: types.float32, f64: types.float64}[x](x), generate


@intrinsic
def at_address(typingctx, address, model):
    """A pointer from an integer, to elements of model's dtype; the caller must keep their memory alive."""

    def generate(context, builder, sig, args):
        return builder.inttoptr(args[0], context.get_value_type(sig.return_type))

    return types.CPointer(model.dtype)(address, model), generate


@intrinsic
def from_place(typingctx, pointer, place):
    """The pointer to element number `place`, which may be negative."""

    def generate(context, builder, sig, args):
        return builder.gep(args[0], [context.cast(builder, args[1], sig.args[1], types.intp)])

    return pointer(pointer, place), generate


@intrinsic
def replace_lanes(typingctx, old, new, first, last):
    """new in the lanes first ... last - 1 (u32, the same in every lane), old in the others."""

    def generate(context, builder, sig, args):
        old, new, first, last = args
        lanes = _constant(first.type, range(LANES))
        inside = builder.and_(*(builder.icmp_unsigned(*x) for x in ((">=", lanes, first), ("<", lanes, last))))
        return builder.select(inside, new, old)

    return old(old, new, first, last), generate
