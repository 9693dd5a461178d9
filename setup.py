"""Builds the native extension with CMake and Ninja; everything else is in pyproject.toml."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext

SOURCE = Path(__file__).parent.resolve()


class CMakeExtension(Extension):
    """An extension whose sources CMakeLists.txt knows."""

    def __init__(self, name):
        super().__init__(name, sources=[])


class Build(build):
    """Starts from an empty folder: what an earlier build left there, of modules since removed, would go into the wheel."""

    def run(self):
        shutil.rmtree(Path(self.build_lib) / "dynadapt", ignore_errors=True)
        super().run()


class CMakeBuild(build_ext):
    """Installs dynadapt._C, libdynadapt.so, the headers and the build files into the package."""

    def build_extension(self, extension):
        packages = [Path(self.get_ext_fullpath(extension.name)).parent.resolve()]
        if self.inplace or getattr(self, "editable_mode", False):
            packages.append(SOURCE / "dynadapt")  # setuptools copies only the extension there, not the library it needs
        tag = f"{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
        tree = SOURCE / "build" / tag
        jobs = self.parallel or os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL") or os.cpu_count() or 1
        import pybind11

        configure = [
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DDYNADAPT_SANITIZE={os.environ.get('DYNADAPT_SANITIZE', '')}",
        ]
        # An isolated build brings its own ninja, cmake and pybind11, and the cache names them when they are gone. Objects are kept.
        (tree / "CMakeCache.txt").unlink(missing_ok=True)
        subprocess.run(["cmake", "-G", "Ninja", "-S", SOURCE, "-B", tree, *configure], check=True)
        subprocess.run(["cmake", "--build", tree, "--parallel", str(jobs)], check=True)
        for package in packages:
            subprocess.run(["cmake", "--install", tree, "--prefix", package, "--component", "python"], check=True)


setup(
    packages=find_packages(include=["dynadapt", "dynadapt.*"], exclude=["dynadapt.kernels"]) + ["dynadapt.kernels"],
    package_dir={"dynadapt": "dynadapt", "dynadapt.kernels": "kernels"},
    include_package_data=False,  # what is built is installed by CMake; what an editable build left in the tree stays out of wheels
    package_data={
        "dynadapt": ["py.typed"],
        "dynadapt.interop.jax": ["ffi.cpp"],
        "dynadapt.experiments.compare": ["page.html"],
        "dynadapt.kernels": ["choices.json"],
        "dynadapt.bench.plan": ["measured.json"],
    },
    ext_modules=[CMakeExtension("dynadapt._C")],
    cmdclass={"build": Build, "build_ext": CMakeBuild},
)
