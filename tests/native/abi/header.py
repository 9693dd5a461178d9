"""dynadapt.h as Python sees it: functions with their arguments, structs with their fields, both from the header's text."""

import ctypes as c
import re
from pathlib import Path

SCALARS = {
    "int": c.c_int,
    "int32_t": c.c_int32,
    "uint32_t": c.c_uint32,
    "int64_t": c.c_int64,
    "uint64_t": c.c_uint64,
    "float": c.c_float,
    "double": c.c_double,
}
RETURNS = {**SCALARS, "void": None, "const char*": c.c_char_p}


class Device(c.Structure):
    _fields_ = [("type", c.c_int), ("id", c.c_int)]


class DType(c.Structure):
    _fields_ = [("code", c.c_uint8), ("bits", c.c_uint8), ("lanes", c.c_uint16)]


class Tensor(c.Structure):
    _fields_ = [
        ("data", c.c_void_p),
        ("device", Device),
        ("ndim", c.c_int),
        ("dtype", DType),
        ("shape", c.c_void_p),
        ("strides", c.c_void_p),
        ("byte_offset", c.c_uint64),
    ]


def read(path: Path):
    """({function: (return type, {argument: type})}, {struct: ctypes.Structure})."""
    text = re.sub(r"/\*.*?\*/", " ", path.read_text(), flags=re.S)
    functions = {}
    for returns, name, arguments in re.findall(r"DYNADAPT_API ([\w ]+\*?) ?(dynadapt_\w+)\(([^)]*)\);", text):
        split = [re.fullmatch(r"(.*?)(\w+)", " ".join(a.split())).groups() for a in arguments.split(",") if a.strip() != "void"]
        functions[name] = returns.strip(), {name: kind.strip() for kind, name in split}
    structs = {}
    for body, name in re.findall(r"typedef struct \{(.*?)\} (\w+);", text, flags=re.S):
        structs[name] = type(name, (c.Structure,), {"_fields_": [field for line in body.split(";") for field in fields(line)]})
    return functions, structs


def fields(line):
    """[(name, type)] of one line of a struct, such as "int32_t a, b", "const char* c" or "char d[16]"."""
    match = re.fullmatch(r"(?:const )?(\w+)(\*?) (.*)", " ".join(line.split()))
    if not match:
        return
    kind, pointer, names = match.groups()
    for name in names.split(", "):
        array = re.fullmatch(r"(\w+)\[(\d+)\]", name)
        if array:
            yield array[1], c.c_char * int(array[2])
        else:
            yield name, c.c_void_p if pointer else SCALARS[kind]


def load(library: str, functions):
    """The library, with the types of its functions set."""
    loaded = c.CDLL(library)
    for name, (returns, arguments) in functions.items():
        function = getattr(loaded, name)
        function.restype = RETURNS.get(returns, DType)
        function.argtypes = [{**SCALARS, "DLDataType": DType}.get(kind, c.c_void_p) for kind in arguments.values()]
    return loaded
