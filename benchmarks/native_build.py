"""How a tree's native libraries are built in place, without pip."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def build_commands(tree: Path, folder: Path) -> dict[str, list[str]]:
    """{"configure", "build", "install"}; into tree/dynadapt, by way of `folder`."""
    import pybind11

    settings = {"Python_EXECUTABLE": sys.executable, "pybind11_DIR": pybind11.get_cmake_dir(), "DYNADAPT_STATIC": "OFF"}
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


def link_kernels(tree: Path) -> None:
    """dynadapt/kernels is a link to kernels/ where nothing was installed."""
    link = tree / "dynadapt" / "kernels"
    if not link.exists():
        link.symlink_to("../kernels")
