"""How a tree's native libraries are built in place, without pip."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path

LEAST_PYBIND11 = (2, 13)  # of CMakeLists.txt


def build_commands(tree: Path, folder: Path) -> dict[str, list[str]]:
    """{"configure", "build", "install"}; into tree/dynadapt, by way of `folder`."""
    settings = {"Python_EXECUTABLE": sys.executable, **_pybind11(), "DYNADAPT_STATIC": "OFF"}
    return {
        "configure": [
            "cmake",
            "-S",
            str(tree),
            "-B",
            str(folder),
            "-G",
            "Ninja",
            *(f"-D{name}={value}" for name, value in settings.items()),
        ],
        "build": ["cmake", "--build", str(folder), "--target", "_C", "--parallel", str(os.cpu_count() or 1)],  # and what it needs
        "install": ["cmake", "--install", str(folder), "--prefix", str(tree / "dynadapt"), "--component", "python"],
    }


def _pybind11() -> dict[str, str]:
    """Settings by which CMake finds pybind11: the package's, or where there is none that will do the headers in torch's wheel."""
    if find_spec("pybind11"):
        import pybind11

        if pybind11.version_info[:2] >= LEAST_PYBIND11:
            return {"pybind11_DIR": pybind11.get_cmake_dir(), "DYNADAPT_PYBIND11_INCLUDE": ""}
    torch = find_spec("torch")
    if torch is None:
        raise RuntimeError(
            f"pybind11 {'.'.join(map(str, LEAST_PYBIND11))} or later is not installed, and neither is torch, whose wheel has its headers"
        )
    return {"DYNADAPT_PYBIND11_INCLUDE": str(Path(torch.submodule_search_locations[0]) / "include")}


def link_kernels(tree: Path) -> None:
    """dynadapt/kernels is a link to kernels/ where nothing was installed."""
    link = tree / "dynadapt" / "kernels"
    if not link.exists():
        link.symlink_to("../kernels")
