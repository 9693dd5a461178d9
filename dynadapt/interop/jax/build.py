"""Builds ffi.cpp against the headers of the jaxlib that is there, once, and keeps the library in the cache.

It is built on first use because XLA's headers come with jaxlib, which may be installed or changed after dynadapt. That takes a
C++ compiler ($CXX, or g++) and a few seconds.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import jax
import jaxlib

from dynadapt.common.cache import cache_root
from dynadapt.common.making import in_the_making
from dynadapt.interop.linking import PACKAGE, library_dir
from dynadapt.ops.dispatch import UnsupportedOp, native_module
from dynadapt.ops.table import OPS

SOURCE = Path(__file__).with_name("ffi.cpp")


@functools.lru_cache(None)
def library() -> ctypes.CDLL:
    """The library, built if it has to be, with its handlers registered with jax.

    Raises:
        UnsupportedOp: where the native kernels or a compiler are missing, or the compiler fails; with its words.
    """
    native_module()  # says what is missing where the native kernels are not built
    loaded = ctypes.CDLL(str(_built()))
    loaded.dynadapt_xla_freeze.restype = ctypes.c_int64
    loaded.dynadapt_xla_freeze.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int]
    loaded.dynadapt_xla_thaw.argtypes = [ctypes.c_int64]
    for name in (row.name for row in OPS.values() if row.jax):
        handler = jax.ffi.pycapsule(getattr(loaded, f"dynadapt_xla_{name}"))
        jax.ffi.register_ffi_target(f"dynadapt_{name}", handler, platform="cpu")
        jax.ffi.register_ffi_target(f"dynadapt_{name}", jax.ffi.pycapsule(loaded.dynadapt_xla_no_gpu), platform="CUDA")
    return loaded


def cache_directory() -> Path:
    """$DYNADAPT_CACHE/xla, or ~/.cache/dynadapt/xla."""
    return cache_root() / "xla"


def _include_directory() -> Path:
    """Where dynadapt/dynadapt.h is: in the installed package, or in the source tree."""
    installed, source = PACKAGE / "include", PACKAGE.parent / "csrc" / "include"
    for directory in (installed, source):
        if (directory / "dynadapt" / "dynadapt.h").exists():
            return directory
    raise UnsupportedOp(f"dynadapt.jax needs dynadapt/dynadapt.h, which is neither in {installed} nor in {source}")


def _built() -> Path:
    include, kernels = _include_directory(), library_dir()
    compiler = shlex.split(os.environ.get("CXX", "g++"))
    command = [
        *compiler,
        "-std=c++17",
        "-O1",
        "-fPIC",
        "-shared",
        "-fvisibility=hidden",
        f"-I{include}",
        "-isystem",
        jax.ffi.include_dir(),
        str(SOURCE),
        f"-L{kernels}",
        "-ldynadapt",
        f"-Wl,-rpath,{kernels}",
    ]
    key = hashlib.sha256("\0".join([*command, jaxlib.__version__]).encode())
    for file in (SOURCE, include / "dynadapt" / "dynadapt.h"):
        key.update(file.read_bytes())
    built = cache_directory() / f"dynadapt-{key.hexdigest()[:16]}.so"
    if not built.exists():
        _compile(command, built)
    return built


def _compile(command, built: Path) -> None:
    if shutil.which(command[0]) is None:
        raise UnsupportedOp(f"dynadapt.jax is compiled on first use and found no compiler {command[0]!r}; install g++ or set CXX")
    built.parent.mkdir(parents=True, exist_ok=True)
    with in_the_making(built, directory=True) as room:  # a rename at the end: others see all of it or nothing
        output = room / built.name
        result = subprocess.run([*command, "-o", str(output)], capture_output=True, text=True)
        if result.returncode:
            raise UnsupportedOp(f"dynadapt.jax did not compile against jaxlib {jaxlib.__version__}:\n{result.stderr[-4000:]}")
        os.replace(output, built)
