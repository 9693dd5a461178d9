"""Where the C library, its headers and its build files lie in the Python package: `python -m dynadapt --cmakedir` and others."""

from __future__ import annotations

import shlex
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]


def _there(path: Path, holds: str) -> Path:
    if not (path / holds).exists():
        raise FileNotFoundError(
            f"{path / holds} is missing: the native extension is not built; build it with `pip install -e .` in a checkout"
        )
    return path


def include_dir() -> Path:
    """The directory that has dynadapt/dynadapt.h."""
    return _there(PACKAGE / "include", "dynadapt/dynadapt.h")


def library_dir() -> Path:
    """The directory that has libdynadapt.so."""
    return _there(PACKAGE, "libdynadapt.so")


def cmake_dir() -> Path:
    """For CMake's find_package: -Ddynadapt_DIR=..."""
    return _there(PACKAGE / "share" / "cmake" / "dynadapt", "dynadaptConfig.cmake")


def pkgconfig_dir() -> Path:
    """For pkg-config: PKG_CONFIG_PATH=..."""
    return _there(PACKAGE / "share" / "pkgconfig", "dynadapt.pc")


def _quoted(flag: str, path: Path) -> str:
    return shlex.quote(f"{flag}{path}")


# option -> (what `--help` says, what it prints)
FLAGS = {
    "cmakedir": ("the directory of dynadaptConfig.cmake, for find_package", lambda: str(cmake_dir())),
    "pkgconfigdir": ("the directory of dynadapt.pc, for PKG_CONFIG_PATH", lambda: str(pkgconfig_dir())),
    "includes": ("compiler flags for dynadapt/dynadapt.h", lambda: _quoted("-I", include_dir())),
    "libs": (
        "linker flags for libdynadapt.so, with its place in the rpath",
        lambda: f"{_quoted('-L', library_dir())} {_quoted('-Wl,-rpath,', library_dir())} -ldynadapt",
    ),
}
