"""What is installed: source distribution, wheel, installation and removal, types, and builds that follow one another.

The quick tests compile nothing: cmake's build step is left out, and what it would have made comes from the build tree that is there. The
slow one builds for real, in isolation, twice (`make package`).
"""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
from tiny import english, tiny_directory

import dynadapt

ROOT = Path(__file__).resolve().parents[2]
TAG = f"{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
PROGRAM = """
import sys, torch, dynadapt
from dynadapt import Adam, Engine, LoRA
assert dynadapt.__file__.startswith(sys.prefix), dynadapt.__file__
engine = Engine(dynadapt.load(sys.argv[1]), adapt=LoRA(rank=2), optimizer=Adam(lr=1e-2), segment=8, dtype="fp32", backend="cpu")
import dynadapt.kernels.choices, dynadapt.bench.plan.measured
print(float(engine.step(torch.arange(1, 10)[None]).sum()))
"""


def run(*command, **options) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=options.pop("timeout", 300), **options)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def in_package(wheel: Path) -> set[str]:
    return {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("dynadapt/")}


# ---------------------------------------------------------------------------------------------------------- source


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> Path:
    """Of a copy of the checkout, so that nothing is written into it; the copy has what builds and runs leave behind."""
    if not (ROOT / ".git").exists():
        pytest.skip("this is not a checkout")
    copy = tmp_path_factory.mktemp("checkout")
    for name in run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT).splitlines():
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    for name in (
        "dynadapt/libdynadapt.so",
        "dynadapt/_C.cpython-39-x86_64-linux-gnu.so",
        "dynadapt/include/dynadapt/dynadapt.h",
        "dynadapt/share/pkgconfig/dynadapt.pc",
        "dynadapt/__pycache__/cli.cpython-39.pyc",
        "build/old/CMakeCache.txt",
        "runs/a/config.json",
        "examples/c/adapt",
        "tests/__pycache__/tiny.cpython-39.pyc",
    ):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes(b"left behind")
    run(sys.executable, "-c", "import setuptools.build_meta as b; b.build_sdist('dist')", cwd=copy)
    (found,) = (copy / "dist").iterdir()
    return found


@pytest.fixture(scope="module")
def source(sdist, tmp_path_factory) -> Path:
    """The source distribution, unpacked."""
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    return folder / sdist.name.removesuffix(".tar.gz")


def test_the_source_distribution_is_the_checkout(source):
    tracked = {name for name in run("git", "ls-files", cwd=ROOT).splitlines() if (ROOT / name).is_file()}
    found = {str(path.relative_to(source)) for path in source.rglob("*") if path.is_file()}
    made = {name for name in found if name.startswith("dynadapt.egg-info/")} | {"PKG-INFO", "setup.cfg"}
    assert tracked - found == set()
    untracked = set(run("git", "ls-files", "--others", "--exclude-standard", cwd=ROOT).splitlines())
    assert found - tracked - made - untracked == set()
    assert all((source / name).read_bytes() == (ROOT / name).read_bytes() for name in tracked)


def test_the_version_has_one_home():
    """What is built from it says the same: test_a_wheel_and_the_library_in_it_say_the_version."""
    version = dynadapt.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    for name in ("pyproject.toml", "setup.py", "CMakeLists.txt", "dynadapt/__init__.py", "csrc/include/dynadapt/dynadapt.h"):
        assert not re.search(rf"(?<![\d.>=]){re.escape(version)}(?![\d.])", (ROOT / name).read_text("utf-8")), name
    assert f'VERSION = "{version}"' in (ROOT / "dynadapt" / "common" / "version.py").read_text("utf-8")
    newest = re.search(r"^## (.*)", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M)[1]
    assert newest == "Unreleased" or newest.startswith(version)


def test_constraints_name_a_version_of_everything_that_is_tested_with():
    pinned = {
        line.split("==")[0].lower() for line in (ROOT / "requirements" / "constraints.txt").read_text("utf-8").splitlines() if "==" in line
    }
    listed = re.findall(
        r'"([A-Za-z][\w.-]*)(?:[>=~]|")',
        (ROOT / "pyproject.toml").read_text("utf-8").partition("[project.scripts]")[0].partition("dependencies = ")[2],
    )
    assert {name.lower() for name in listed if name.lower() != "dynadapt"} <= pinned


# ----------------------------------------------------------------------------------------------------------- wheel


def built_tree() -> Path:
    if not (ROOT / "build" / TAG / "cmake_install.cmake").exists():
        pytest.skip("there is no build tree (build/): the package came from elsewhere")
    return ROOT / "build" / TAG


def without_compiling(folder: Path, ninja: Path | None = None) -> dict[str, str]:
    """An environment whose cmake leaves the building out, installs from the build tree that is there, and configures if `ninja` is given."""
    folder.mkdir(parents=True)
    real = shutil.which("cmake", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if real is None:
        pytest.skip("cmake is not installed")
    configure = f'exec {real} "$@"' if ninja else "exit 0"
    (folder / "cmake").write_text(
        f'#!/bin/sh\ncase $1 in --build) exit 0 ;; --install) shift 2; exec {real} --install {built_tree()} "$@" ;; esac\n{configure}\n'
    )
    (folder / "cmake").chmod(0o755)
    if ninja:
        (folder / "ninja").symlink_to(ninja)
    return {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}


def build_wheel(source: Path, out: Path, environment: dict[str, str]) -> Path:
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-build-isolation", "--no-deps", "--no-index", "-w", out, source, env=environment)
    (wheel,) = out.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    return build_wheel(source, folder / "out", without_compiling(folder / "bin"))


def test_a_wheel_has_every_module_and_what_modules_read(wheel, source):
    found = in_package(wheel)
    modules = {f"dynadapt/{path.relative_to(source / 'dynadapt')}" for path in (source / "dynadapt").rglob("*.py")}
    kernels = {f"dynadapt/kernels/{path.relative_to(source / 'kernels')}" for path in (source / "kernels").rglob("*.py")}
    data = {
        "dynadapt/py.typed",
        "dynadapt/interop/jax/ffi.cpp",
        "dynadapt/kernels/choices.json",
        "dynadapt/bench/plan/measured.json",
        "dynadapt/experiments/compare/page.html",
    }
    assert modules | kernels | data <= found
    rest = found - modules - kernels - data
    assert {name for name in rest if not re.fullmatch(r"dynadapt/(include|share)/.*|dynadapt/(lib\w+|_C\..*)\.so", name)} == set()
    share = {f"dynadapt/share/cmake/dynadapt/dynadapt{part}.cmake" for part in ("Config", "ConfigVersion", "Targets", "Targets-release")}
    share |= {"dynadapt/share/pkgconfig/dynadapt.pc", "dynadapt/include/dynadapt/dynadapt.h", "dynadapt/include/dynadapt/dlpack.h"}
    assert share | {"dynadapt/libdynadapt.so", f"dynadapt/_C{sysconfig.get_config_var('EXT_SUFFIX')}"} <= rest


def test_a_wheel_and_the_library_in_it_say_the_version(wheel):
    assert wheel.name.split("-")[1] == dynadapt.__version__
    with zipfile.ZipFile(wheel) as archive:
        told = (
            archive.read("dynadapt/share/pkgconfig/dynadapt.pc").decode(),
            archive.read("dynadapt/share/cmake/dynadapt/dynadaptConfigVersion.cmake").decode(),
        )
    assert f"Version: {dynadapt.__version__}\n" in told[0] and f'set(PACKAGE_VERSION "{dynadapt.__version__}")' in told[1]


def test_a_second_wheel_of_the_same_folder_holds_nothing_of_the_first(source, wheel, tmp_path):
    """Modules that were removed since, and what an editable installation for another Python left in the package."""
    copy = tmp_path / "source"
    shutil.copytree(source, copy)
    (copy / "dynadapt" / "_C.cpython-39-x86_64-linux-gnu.so").touch()
    (copy / "dynadapt" / "gone.py").touch()
    environment = without_compiling(tmp_path / "bin")
    assert "dynadapt/gone.py" in in_package(build_wheel(copy, tmp_path / "one", environment))
    (copy / "dynadapt" / "gone.py").unlink()
    assert in_package(build_wheel(copy, tmp_path / "two", environment)) == in_package(wheel)


def test_a_build_goes_on_where_the_tools_of_the_last_one_are_gone(source, tmp_path):
    """As pip's isolated builds do: cmake, ninja and pybind11 lie in a folder of that build, which is removed."""
    copy = tmp_path / "source"
    shutil.copytree(source, copy)
    ninja = shutil.which("ninja", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if ninja is None:
        pytest.skip("ninja is not installed")
    for name in ("one", "two"):
        environment = without_compiling(tmp_path / name, Path(ninja))
        build_wheel(copy, tmp_path / f"{name}-out", environment)
        cache = (copy / "build" / TAG / "CMakeCache.txt").read_text("utf-8")
        assert f"CMAKE_MAKE_PROGRAM:FILEPATH={tmp_path / name / 'ninja'}" in cache
        (copy / "build" / TAG / "CMakeFiles" / "kept.o").touch()  # objects stay: a second build is a short one
        shutil.rmtree(tmp_path / name)
    assert (copy / "build" / TAG / "CMakeFiles" / "kept.o").exists()


# -------------------------------------------------------------------------------------------------------- installed


def clean_environment(folder: Path) -> Path:
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    return folder / "bin" / "python"


def packages_of(python: Path) -> Path:
    return Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())


def lend_packages(python: Path) -> Path:
    """torch and others from where these tests run, after what the environment has of its own. Editable installations are not lent."""
    path = packages_of(python) / "lent.pth"
    path.write_text("\n".join(entry for entry in sys.path if Path(entry).name in ("site-packages", "dist-packages")) + "\n")
    return path


def check_installation(python: Path, model: Path, text: Path, folder: Path) -> None:
    """The command, a score from Python, and one from the command line, away from the checkout."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    assert run(python.parent / "dynadapt", "--version", cwd=folder, env=environment) == f"{dynadapt.__version__}\n"
    said = run(python.parent / "dynadapt", "info", cwd=folder, env=environment)
    assert "instruction set" in said and "not built" not in said
    assert float(run(python, "-c", PROGRAM, model, cwd=folder, env=environment)) > 0
    words = [
        "eval",
        "--model",
        model,
        "--text",
        text,
        "--segment",
        "16",
        "--rank",
        "2",
        "--dtype",
        "fp32",
        "--out",
        folder / "run",
        "--quiet",
    ]
    assert run(python.parent / "dynadapt", *words, cwd=folder, env=environment).splitlines()[-1].startswith("nll ")
    assert json.loads((folder / "run" / "summary.json").read_text())["nll"] > 0


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return tiny_directory(tmp_path_factory.mktemp("model"))


def test_a_wheel_installs_runs_and_goes_without_a_trace(wheel, model, tmp_path):
    python = clean_environment(tmp_path / "venv")
    pip = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check"]
    before = tree(tmp_path / "venv")
    install = [*pip, "install", "-q", "--no-deps", "--no-index", wheel]
    run(*install)
    installed = tree(tmp_path / "venv")
    run(*install, "--force-reinstall")
    assert tree(tmp_path / "venv") == installed
    lent = lend_packages(python)
    (tmp_path / "a.txt").write_text(english(100))
    check_installation(python, model, tmp_path / "a.txt", tmp_path)
    lent.unlink()
    run(*pip, "uninstall", "-q", "-y", "dynadapt")
    assert tree(tmp_path / "venv") - before == set()


# ------------------------------------------------------------------------------------------------------- for real


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_isolated_builds_one_after_the_other(sdist, model, tmp_path):
    """`python -m build` of the sdist, twice in the same folder, each with tools of its own; unoptimised, for the compiler's time."""
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    folder = tmp_path / sdist.name.removesuffix(".tar.gz")
    environment = {**os.environ, "CMAKE_BUILD_TYPE": "Debug", "CXXFLAGS": "-O0"}
    for out in ("one", "two"):
        run(sys.executable, "-m", "build", "--sdist", "--wheel", "--outdir", tmp_path / out, folder, env=environment, timeout=900)
    names = [{path.name for path in (tmp_path / out).iterdir()} for out in ("one", "two")]
    assert names[0] == names[1] and len(names[0]) == 2
    (wheel,) = (tmp_path / "two").glob("*.whl")
    python = clean_environment(tmp_path / "venv")
    run(sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", wheel)
    lend_packages(python)
    (tmp_path / "a.txt").write_text(english(100))
    check_installation(python, model, tmp_path / "a.txt", tmp_path)
