"""Runs a module as `python -m` does, but imports nothing from the working directory: python launch.py PARENT MODULE ARGUMENTS...

PARENT is the process that started this one and 0 for none: when it ends, however it ends, this one gets SIGTERM. children.py writes the
command. This file is run by its path, so that the package it lies in is the one that is used, installed or not.
"""

import sys

HERE = __file__.rpartition("/")[0]
PACKAGE = HERE.rpartition("/")[0]
if __name__ == "__main__":  # before any other import: this folder's names are not top-level ones
    sys.path[:] = [entry for entry in sys.path if entry not in ("", HERE)]

import importlib.util
import os
import runpy
import signal

PR_SET_PDEATHSIG = 1


def end_with(parent: int) -> None:
    """Has the kernel send SIGTERM when `parent` is gone; where it can't (only Linux does), nothing happens."""
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:  # it went before this was asked for
        os.kill(os.getpid(), signal.SIGTERM)


def load_package(folder: str) -> None:
    """`dynadapt` of this folder, whatever sys.path would find first."""
    name = os.path.basename(folder)
    spec = importlib.util.spec_from_file_location(name, os.path.join(folder, "__init__.py"), submodule_search_locations=[folder])
    assert spec is not None and spec.loader is not None  # as for every .py file
    package = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(package)


def main() -> None:
    parent, module = int(sys.argv[1]), sys.argv[2]
    sys.argv[1:3] = []
    if parent:
        end_with(parent)
    if module.partition(".")[0] == os.path.basename(PACKAGE):
        load_package(PACKAGE)
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
