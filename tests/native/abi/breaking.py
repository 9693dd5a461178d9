"""Calls every function of dynadapt.h with each argument broken in each way. Run as a program, because a fault ends the process:

    breaking.py LIBRARY HEADER FOLDER

FOLDER has `model`, a model directory, and `adapter`. Each case is named on standard error before its call; the failures are
printed as JSON at the end. A broken call must say DYNADAPT_INVALID, name the argument, and leave all memory as it was.
"""

from __future__ import annotations

import ctypes as c
import itertools
import json
import math
import re
import struct
import sys
from pathlib import Path

import header
import rows

OK, INVALID, IO = 0, 1, 4
TYPES = {"f32": ((2, 32), "f"), "f64": ((2, 64), "d"), "bf16": ((4, 16), "H"), "i32": ((0, 32), "i"), "i64": ((0, 64), "q")}
CPU, CUDA = 1, 2
CANARY = b"\xa5" * 64
ALIASES = {
    "query_heads": "hq",
    "kv_heads": "hkv",
    "head_dim": "d",
    "key_heads": "hk",
    "value_heads": "hv",
    "key_dim": "dk",
    "value_dim": "dv",
}
NO_CODE = {"int64_t": -1, "DLDataType": 0, "const char*": None}  # what a wrong argument gives where there is no code


class Memory:
    """Bytes between canaries."""

    def __init__(self, content: bytes):
        self.size = len(content)
        self.buffer = c.create_string_buffer(CANARY + b"\0" * 8 + content + CANARY, len(content) + 2 * len(CANARY) + 8)
        start = c.addressof(self.buffer) + len(CANARY)
        self.address = start + (-start) % 8
        c.memmove(self.address, content, len(content))
        c.memmove(self.address + len(content), CANARY, len(CANARY))

    def all(self) -> bytes:
        return self.buffer.raw

    def whole(self) -> bool:
        return c.string_at(self.address - 56, 56) == CANARY[:56] and c.string_at(self.address + self.size, len(CANARY)) == CANARY


def pack(kind: str, values) -> bytes:
    code = TYPES[kind][1]
    return struct.pack(f"={len(values)}{code}", *values)


def product(shape):
    return math.prod(shape)


class Call:
    """One function, its good arguments, and the memory that they point to."""

    def __init__(self, library, name, returns, kinds, row, structs, world):
        self.function, self.name, self.returns, self.kinds, self.row = getattr(library, name), name, returns, kinds, row
        self.library, self.structs, self.world = library, structs, world
        self.memory, self.keep, self.values, self.tensors = {}, [], {}, {}
        for argument, spec in row.items():
            self.values[argument] = getattr(self, "make_" + type(spec).__name__.lower())(argument, spec)

    # ---- good arguments

    def bytes_of(self, spec, shape=None):
        count = product(shape or spec.shape) if isinstance(spec, rows.T) else spec.count
        values = spec.values or [0.25 + 0.01 * i for i in range(count)]
        if TYPES[spec.dtype][1] in "HiqQ":
            values = [int(v) for v in values]
        return pack(spec.dtype, (list(values) * (1 + count))[:count])

    def make_t(self, argument, spec, shape=None):
        shape = shape or spec.shape
        memory = self.memory[argument] = Memory(self.bytes_of(spec, shape))
        tensor = header.Tensor(
            memory.address, header.Device(CPU, 0), len(shape), header.DType(*TYPES[spec.dtype][0], 1), self.int64s(shape), None, 0
        )
        self.tensors[argument] = tensor
        return c.addressof(tensor)

    def int64s(self, values):
        array = (c.c_int64 * len(values))(*values)
        self.keep.append(array)
        return c.addressof(array)

    def make_matrix(self, argument, spec, dtype="f32"):
        out = c.c_void_p()
        memory = Memory(b"\0" * spec.rows * spec.columns * 4)
        tensor = header.Tensor(
            memory.address, header.Device(CPU, 0), 2, header.DType(*TYPES[dtype][0], 1), self.int64s((spec.rows, spec.columns)), None, 0
        )
        assert self.library.dynadapt_matrix_create(c.byref(tensor), c.byref(out)) == OK
        return out.value

    def make_parts(self, argument, spec, **changed):
        handles = [self.make_matrix(argument, rows.Matrix()) for _ in range(spec.count)]
        return self.pointers(changed.get("handles", handles))

    def pointers(self, handles):
        array = (c.c_void_p * len(handles))(*handles)
        self.keep.append(array)
        return c.addressof(array)

    def make_number(self, argument, spec):
        return spec.value

    def make_dtype(self, argument, spec):
        return header.DType(*spec.value)

    def make_struct(self, argument, spec, size=None, tail=b"", **changed):
        kind = self.structs[spec.name]
        assert [name for name, _ in kind._fields_] == ["struct_size", *spec.fields], f"{spec.name}: rows.py lists other fields"
        made = kind(c.sizeof(kind) if size is None else size)
        for name, (value, _) in spec.fields.items():
            setattr(made, name, self.field(changed.get(name, value)))
        memory = self.memory[argument] = Memory(bytes(made) + tail)
        return memory.address

    def field(self, value):
        if isinstance(value, tuple) and all(isinstance(n, float) for n in value):
            array = (c.c_float * len(value))(*value)
            self.keep.append(array)
            return c.addressof(array)
        if isinstance(value, tuple):
            return self.int64s(value)
        if isinstance(value, str):
            text = c.create_string_buffer(value.encode())
            self.keep.append(text)
            return c.addressof(text)
        return value

    def make_array(self, argument, spec):
        memory = self.memory[argument] = Memory(self.bytes_of(spec))
        return memory.address

    def make_result(self, argument, spec, size=None):
        kind = self.structs[spec.name]
        made = kind(c.sizeof(kind) if size is None else size)
        for name, count in spec.fields.items():
            memory = self.memory[f"{argument}.{name}"] = Memory(b"\x11" * count)
            setattr(made, name, memory.address)
        memory = self.memory[argument] = Memory(bytes(made))
        return memory.address

    def make_handle(self, argument, spec):
        return self.world["engine"]

    def make_text(self, argument, spec):
        return self.text(spec.value)

    def text(self, value):
        return self.field(str(self.world["folder"] / value) if value else "")

    def make_word(self, argument, spec):
        return self.field(spec.value)

    def make_slot(self, argument, spec):
        memory = self.memory[argument] = Memory(b"\0" * 8)
        return memory.address

    # ---- calls

    def run(self, changed=()):
        values = {**self.values, **dict(changed)}
        return self.function(*(values[argument] for argument in self.kinds))

    def good(self):
        """None, or what is wrong with the good call."""
        if self.name == "dynadapt_engine_params_default":
            self.values["struct_size"] = c.sizeof(self.structs["dynadapt_engine_params"])
        code = self.run()
        for argument, memory in self.memory.items():
            if not memory.whole():
                return f"the good call wrote beside {argument}"
        if self.returns == "int" and self.row and code != OK:
            return f"the good call gave {code}: {self.library.dynadapt_last_error().decode()}"
        for argument, spec in self.row.items():
            if isinstance(spec, rows.Slot):
                getattr(self.library, spec.destroy)(c.cast(self.memory[argument].address, c.POINTER(c.c_void_p))[0])
                c.memset(self.memory[argument].address, 0, 8)
        return None

    def broken(self, changed, names, codes=(INVALID,), may_pass=False):
        """None, or what is wrong with the outcome of a broken call."""
        before = {argument: memory.all() for argument, memory in self.memory.items()}
        result = self.run(changed)
        text = self.library.dynadapt_last_error().decode()
        if self.returns in NO_CODE:
            result = INVALID if getattr(result, "bits", result) == NO_CODE[self.returns] else OK
        if may_pass and result == OK:
            return None if all(memory.whole() for memory in self.memory.values()) else "wrote beside its memory"
        if result not in codes:
            return f"gave {result}" + (f": {text}" if result else "")
        if not any(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text) for name in names):
            return f"the text names none of {', '.join(names)}: {text}"
        touched = [argument for argument, memory in self.memory.items() if argument in before and memory.all() != before[argument]]
        return f"changed {', '.join(touched)}: {text}" if touched else None


def cases(call: Call):
    """(argument, what is wrong, a function that gives the broken call's outcome)."""
    for argument, spec in call.row.items():
        for what, make, options in globals()["break_" + type(spec).__name__.lower()](call, argument, spec):
            yield argument, what, lambda make=make, argument=argument, options=options: outcome(call, argument, make, options)


def outcome(call, argument, make, options):
    """Breaks the argument, calls, and puts it back."""
    names = options.pop("names", (argument,))
    made = make()
    instead = isinstance(made, Value)
    try:
        return call.broken({argument: made.value} if instead else {}, [*names, *(ALIASES[n] for n in names if n in ALIASES)], **options)
    finally:
        if not instead:
            made()


class Value:
    """What stands in an argument's place."""

    def __init__(self, value):
        self.value = value


def put(thing, **fields):
    """Sets fields of a struct; what it gives puts them back."""
    old = {name: getattr(thing, name) for name in fields}
    old = {name: type(v).from_buffer_copy(v) if isinstance(v, c.Structure) else v for name, v in old.items()}  # not a view
    for name, value in fields.items():
        setattr(thing, name, value)
    return lambda: [setattr(thing, name, value) for name, value in old.items()]


def poke(memory, offset, content):
    old = c.string_at(memory.address + offset, len(content))
    c.memmove(memory.address + offset, content, len(content))
    return lambda: c.memmove(memory.address + offset, old, len(content))


def break_t(call, argument, spec):
    tensor, memory, shape = call.tensors[argument], call.memory[argument], spec.shape
    set_ = lambda **fields: lambda: put(tensor, **fields)  # noqa: E731
    everyone = tuple(call.row)
    if not spec.optional:
        yield "NULL", lambda: Value(None), {"names": everyone if argument in ("A", "Bt", "position_table", "positions") else (argument,)}
    yield "data NULL", set_(data=None), {}
    yield "shape NULL", set_(shape=None), {}
    for ndim in (-1, -3, 0, len(shape) - 1, len(shape) + 1, 1_000_000, rows.INT_MAX, rows.INT_MIN):
        yield f"ndim {ndim}", set_(ndim=ndim), {}
    for i, value in itertools.product(range(len(shape)), (-1, -4, -(2**40), -(2**63), 2**50, 2**62, 2**63 - 1)):
        yield f"shape[{i}] = {value}", set_(shape=call.int64s((*shape[:i], value, *shape[i + 1 :]))), {"names": everyone}
    if len(shape) > 1:
        yield "a shape whose product overflows", set_(shape=call.int64s((2**33,) * len(shape))), {}
        yield "a shape of nothing times much", set_(shape=call.int64s((0, *(2**62,) * (len(shape) - 1)))), {"names": everyone}
    dense = [product(shape[i + 1 :]) for i in range(len(shape))]
    for i, (stride, value) in itertools.product(
        range(len(shape)), [("0", 0), ("-1", -1), ("2**62", 2**62), ("2**63-1", 2**63 - 1), ("half", None)]
    ):
        value = dense[i] // 2 if value is None else value
        if shape[i] > 1 and value != dense[i]:
            yield f"strides[{i}] = {stride}", set_(strides=call.int64s((*dense[:i], value, *dense[i + 1 :]))), {}
    dtype = TYPES[spec.dtype][0]
    for code, bits, lanes in (
        (*dtype, 0),
        (*dtype, 2),
        (3, dtype[1], 1),
        (255, 255, 65535),
        (dtype[0], 8, 1),
        (1, 32, 1),
        (6, 8, 1),
        *((*other, 1) for other, _ in TYPES.values() if other != dtype),
    ):
        yield (
            f"dtype ({code}, {bits}, {lanes})",
            set_(dtype=header.DType(code, bits, lanes)),
            {"names": everyone, "may_pass": (code, bits, lanes) == (4, 16, 1)},
        )
    for device in (CUDA, 0, 99, -1):
        yield f"device {device}", set_(device=header.Device(device, 0)), {}
    yield "data off by a byte", set_(data=tensor.data + 1), {}
    yield "byte_offset 1", set_(byte_offset=1), {}
    for offset in (2**62, 2**64 - 8):
        yield f"byte_offset {offset}", set_(byte_offset=offset), {}
    for i, value in itertools.product((0, len(spec.values or ()) - 1), spec.bad):
        item = TYPES[spec.dtype][1]
        yield f"[{i}] = {value}", lambda i=i, v=value: poke(memory, i * struct.calcsize(item), struct.pack("=" + item, v)), {}
    for other in call.tensors if spec.out else ():
        if other != argument:
            yield from shared(call, argument, spec, other)


def shared(call, argument, spec, other):
    there, item = call.memory[other], 4 if spec.dtype != "i64" else 8
    names = {"names": (argument, other)}
    if other not in spec.in_place and argument not in getattr(call.row[other], "in_place", ()):
        yield f"the memory of {other}", lambda: put(call.tensors[argument], data=there.address), names
    if there.size > item:
        yield f"a part of {other}", lambda: put(call.tensors[argument], data=there.address + there.size - max(item, 8)), names


def break_matrix(call, argument, spec):
    if spec.optional:
        return
    yield "NULL", lambda: Value(None), {}
    if len(call.row) > 1:
        everyone = tuple(call.row)
        yield "another dtype", lambda: Value(call.make_matrix(argument, spec, "bf16")), {"names": everyone, "may_pass": True}
        yield "another width", lambda: Value(call.make_matrix(argument, rows.Matrix(5, 9))), {"names": everyone}


def break_parts(call, argument, spec):
    good = [call.make_matrix(argument, rows.Matrix()) for _ in range(spec.count)]
    yield "NULL", lambda: Value(None), {}
    yield "off by a byte", lambda: Value(call.values[argument] + 1), {}
    for i in range(spec.count):
        put_ = lambda handle, i=i: Value(call.pointers([*good[:i], handle, *good[i + 1 :]]))  # noqa: E731
        yield f"[{i}] NULL", lambda p=put_: p(None), {}
        yield f"[{i}] another dtype", lambda p=put_: p(call.make_matrix("", rows.Matrix(), "bf16")), {}
        yield f"[{i}] another width", lambda p=put_: p(call.make_matrix("", rows.Matrix(5, 9))), {}
        yield f"[{i}] another height", lambda p=put_: p(call.make_matrix("", rows.Matrix(6, 8))), {"names": tuple(call.row)}


def break_number(call, argument, spec):
    for value in spec.bad:
        yield str(value), lambda v=value: Value(v), {}


def break_dtype(call, argument, spec):
    for value in spec.bad:
        yield f"{value}", lambda v=value: Value(header.DType(*v)), {}


def break_struct(call, argument, spec):
    size = c.sizeof(call.structs[spec.name])
    again = lambda **options: lambda: again_now(call, argument, spec, options)  # noqa: E731
    yield "NULL", lambda: Value(None), {}
    for wrong in (0, 4, 4097, 2**31, 2**32 - 1):
        yield f"struct_size {wrong}", again(size=wrong), {}
    yield "a member too many", again(size=size + 8, tail=b"\0\0\0\0\1\0\0\0"), {}
    for name, (_, bad) in spec.fields.items():
        for value in bad:
            names = (name, "part_sizes", "dBt", "dA") if name == "part_count" else (name,)
            yield f"{name} = {value}", again(**{name: value}), {"names": names}


def again_now(call, argument, spec, options):
    memory = call.memory[argument]
    value = Value(call.make_struct(argument, spec, **options))
    call.keep.append(memory)
    return value


def break_array(call, argument, spec):
    if not spec.optional:
        yield "NULL", lambda: Value(None), {}
    yield "off by a byte", lambda: Value(call.values[argument] + 1), {}
    for i, value in itertools.product((0, spec.count - 1), spec.bad):
        yield f"[{i}] = {value}", lambda i=i, v=value: poke(call.memory[argument], 4 * i, struct.pack("=i", v)), {}
    for other, theirs in call.row.items() if spec.out else ():
        if isinstance(theirs, rows.Array) and other != argument:
            yield f"the memory of {other}", lambda o=other: Value(call.values[o]), {"names": (argument, other)}


def break_result(call, argument, spec):
    if not spec.optional:
        yield "NULL", lambda: Value(None), {}
    if "struct_size" not in call.row:
        for wrong in (0, 4, 4097, 2**32 - 1):
            yield f"struct_size {wrong}", lambda w=wrong: poke(call.memory[argument], 0, struct.pack("=I", w)), {}
    yield "off by a byte", lambda: Value(call.values[argument] + 1), {}
    for name in spec.fields:
        at = getattr(call.structs[spec.name], name).offset
        address = call.memory[f"{argument}.{name}"].address
        yield f"{name} off by a byte", lambda at=at, a=address: poke(call.memory[argument], at, struct.pack("=Q", a + 1)), {}
        yield f"{name} in the memory of nll", lambda at=at: poke(call.memory[argument], at, struct.pack("=Q", call.values["nll"])), {}


def break_handle(call, argument, spec):
    if call.returns != "void":
        yield "NULL", lambda: Value(None), {}


def break_text(call, argument, spec):
    yield "NULL", lambda: Value(None), {}
    for value in spec.bad:
        named = str(call.world["folder"] / value) if value else "config.json"
        yield (
            repr(value),
            lambda v=value: Value(call.text(v)),
            {"names": (argument, named, value or "/adapter", "adapter_config.json"), "codes": (INVALID, IO)},
        )


def break_word(call, argument, spec):
    yield "NULL", lambda: Value(None), {}
    for value in spec.bad:
        yield repr(value[:20]), lambda v=value: Value(call.field(v)), {}


def break_slot(call, argument, spec):
    yield "NULL", lambda: Value(None), {}
    yield "off by a byte", lambda: Value(call.values[argument] + 1), {}


def new_engine(creation):
    made = c.c_void_p()
    assert creation.run({"out": c.addressof(made)}) == OK, creation.library.dynadapt_last_error().decode()
    return made.value


def main(library_path, header_path, folder):
    functions, structs = header.read(Path(header_path))
    missing = {name.removeprefix("dynadapt_") for name in functions} ^ set(rows.ROWS)
    assert not missing, f"functions without a row in rows.py, or rows without a function: {sorted(missing)}"
    library = header.load(library_path, functions)
    world = {"folder": Path(folder), "engine": None}
    creation = Call(library, "dynadapt_engine_create", *functions["dynadapt_engine_create"], rows.ROWS["engine_create"], structs, world)
    world["engine"] = new_engine(creation)
    failures, count = [], 0
    for name, (returns, kinds) in functions.items():
        row = rows.ROWS[name.removeprefix("dynadapt_")]
        assert list(row) == list(kinds), f"{name}: rows.py has {list(row)}, dynadapt.h has {list(kinds)}"
        engine = new_engine(creation) if name == "dynadapt_engine_destroy" else world["engine"]
        call = Call(library, name, returns, kinds, row, structs, {**world, "engine": engine})
        print(name, "good", sep="\t", file=sys.stderr, flush=True)
        wrong = call.good()
        if wrong:
            failures.append(f"{name}: {wrong}")
            continue
        if returns == "void":
            call.run(dict.fromkeys(kinds))  # nothing to destroy
            continue
        for argument, what, run in cases(call):
            print(name, argument, what, sep="\t", file=sys.stderr, flush=True)
            count += 1
            wrong = run()
            if wrong:
                failures.append(f"{name}: {argument}: {what}: {wrong}")
    library.dynadapt_set_num_threads(0)
    library.dynadapt_engine_destroy(world["engine"])
    print(json.dumps({"cases": count, "failures": failures}))


if __name__ == "__main__":
    main(*sys.argv[1:4])
