"""The C library as other programs see it: installed, found by CMake and pkg-config, linked, called, and refusing what it must."""

import ctypes
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import threading
from pathlib import Path

import pytest

from dynadapt import __version__
from dynadapt.interop import linking

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
INVALID = 1
PROGRAMS = {"c": "adapt: adapt.c", "cpp": "adapt: adapt.cpp"}


def tool(name):
    """A program beside this Python (pip installs CMake there), or on the PATH."""
    found = shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]))
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def run(*command, **options):
    environment = {k: v for k, v in os.environ.items() if k != "LD_LIBRARY_PATH"} | options.pop("env", {})
    command = [str(part) for part in command]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, **options)
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout


def dynamic(library, entry):
    """Values of one kind of entry in a library's dynamic section."""
    lines = run(tool("readelf"), "-d", library).splitlines()
    return [line.split("[")[1].split("]")[0] for line in lines if f"({entry})" in line]


def functions(library):
    """Names that a library defines for others."""
    return {line.split()[-1] for line in run(tool("nm"), "-D", "--defined-only", library).splitlines()}


# ---- where it is installed


def build_tree():
    """The build tree that made the package: of setup.py, or of CMake by hand."""
    tag = f"{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
    for tree in (ROOT / "build" / tag, ROOT / "build" / "dev"):
        if (tree / "CMakeCache.txt").exists():
            return tree
    pytest.skip("there is no build tree to install from (build/): the package came from elsewhere")


@pytest.fixture(scope="module")
def prefix(tmp_path_factory):
    """`cmake --install`, moved afterwards: nothing in it may name the place it was installed to."""
    here = tmp_path_factory.mktemp("installed")
    run(tool("cmake"), "--install", build_tree(), "--prefix", here / "first")
    return (here / "first").rename(here / "prefix with a space")


def found_in(where, prefix):
    """What a user sets: (CMake's arguments, PKG_CONFIG_PATH, the library's directory)."""
    if where == "package":
        return [f"-Ddynadapt_DIR={linking.cmake_dir()}"], linking.pkgconfig_dir(), linking.library_dir()
    return [f"-DCMAKE_PREFIX_PATH={prefix}"], prefix / "lib" / "pkgconfig", prefix / "lib"


def test_prefix_holds_the_c_library_and_nothing_of_python(prefix):
    files = {str(p.relative_to(prefix)) for p in prefix.rglob("*") if not p.is_dir()}
    expected = {
        "lib/libdynadapt.a",
        "lib/libdynadapt.so",
        "lib/libdynadapt.so.2",
        f"lib/libdynadapt.so.{__version__}",
        "lib/pkgconfig/dynadapt.pc",
        "include/dynadapt/dynadapt.h",
        "include/dynadapt/dlpack.h",
    }
    expected |= {f"lib/cmake/dynadapt/dynadapt{part}.cmake" for part in ("Config", "ConfigVersion", "Targets", "Targets-release")}
    assert files == expected
    assert (prefix / "lib" / "libdynadapt.so").resolve().name == f"libdynadapt.so.{__version__}"


def test_name_of_the_library_has_the_abi_version(prefix):
    abi = ctypes.CDLL(str(linking.library_dir() / "libdynadapt.so")).dynadapt_abi_version()
    assert dynamic(prefix / "lib" / "libdynadapt.so", "SONAME") == [f"libdynadapt.so.{abi}"]
    # a wheel holds no links between files
    assert dynamic(linking.library_dir() / "libdynadapt.so", "SONAME") == ["libdynadapt.so"]


def test_needs_neither_torch_nor_python_and_shows_the_c_abi_alone():
    library = linking.library_dir() / "libdynadapt.so"
    system = ("libgomp.", "libstdc++.", "libm.", "libgcc_s.", "libc.", "libdl.", "libpthread.", "ld-linux")
    assert [name for name in dynamic(library, "NEEDED") if not name.startswith(system)] == []
    assert dynamic(library, "RUNPATH") + dynamic(library, "RPATH") == []
    shown = functions(library)
    assert {"dynadapt_linear_forward", "dynadapt_update", "dynadapt_last_error"} <= shown
    assert {name for name in shown if not name.startswith("dynadapt_")} == set()


def test_prefix_and_package_have_the_same_functions(prefix):
    ours, installed = functions(linking.library_dir() / "libdynadapt.so"), functions(prefix / "lib" / "libdynadapt.so")
    assert ours == installed, "the build tree and the package are of different times: build and install again"


# ---- consumers


@pytest.mark.parametrize("language", PROGRAMS)
@pytest.mark.parametrize("where", ("prefix", "package"))
def test_example_with_cmake(where, language, prefix, tmp_path):
    arguments, _, libraries = found_in(where, prefix)
    flags = f"-D{'CMAKE_C_FLAGS' if language == 'c' else 'CMAKE_CXX_FLAGS'}=-Wall -Wextra -Werror -pedantic"
    run(tool("cmake"), "-S", EXAMPLES / language, "-B", tmp_path, flags, *arguments)
    run(tool("cmake"), "--build", tmp_path, "--target", "adapt")
    check_program(tmp_path / "adapt", libraries)


@pytest.mark.parametrize("language", PROGRAMS)
@pytest.mark.parametrize("where", ("prefix", "package"))
def test_example_with_pkg_config(where, language, prefix, tmp_path):
    _, path, libraries = found_in(where, prefix)
    if " " in str(path):  # make splits at spaces, whatever pkg-config quotes
        (tmp_path / "link").symlink_to(prefix)
        path, libraries = tmp_path / "link" / "lib" / "pkgconfig", tmp_path / "link" / "lib"
    shutil.copytree(EXAMPLES, tmp_path / "examples", ignore=shutil.ignore_patterns("build"))
    tool("pkg-config")
    run(tool("make"), "-C", tmp_path / "examples" / language, "adapt", env={"PKG_CONFIG_PATH": str(path)})
    check_program(tmp_path / "examples" / language / "adapt", libraries)


def check_program(program, libraries):
    """It runs, and with the library of that directory."""
    linked = next(line for line in run(tool("ldd"), program).splitlines() if "libdynadapt.so" in line)
    assert Path(linked.split("=>")[1].rsplit("(", 1)[0].strip()).parent.resolve() == Path(libraries).resolve()
    said = run(program)
    assert "update" in said and said.count("off by") >= 6


STATIC = """cmake_minimum_required(VERSION 3.25)
project(uses LANGUAGES C)
find_package(dynadapt REQUIRED)
add_executable(adapt ${EXAMPLES}/c/adapt.c)
target_include_directories(adapt PRIVATE ${EXAMPLES})
target_link_libraries(adapt PRIVATE dynadapt::dynadapt_static)
"""


def check_static_program(program):
    assert "libdynadapt" not in run(tool("ldd"), program)
    for isa in ("", "portable"):
        assert run(program, env={"DYNADAPT_CPU_ISA": isa} if isa else {}).count("off by") >= 6


def test_static_library_with_cmake(prefix, tmp_path):
    """For a program in C, whose build knows no C++ library."""
    (tmp_path / "CMakeLists.txt").write_text(STATIC)
    run(tool("cmake"), "-S", tmp_path, "-B", tmp_path / "build", f"-DCMAKE_PREFIX_PATH={prefix}", f"-DEXAMPLES={EXAMPLES}")
    run(tool("cmake"), "--build", tmp_path / "build")
    check_static_program(tmp_path / "build" / "adapt")


def test_static_library_with_pkg_config(prefix, tmp_path):
    """Where the shared library is too, -ldynadapt means that one; so here it is not."""
    moved = tmp_path / "static"
    shutil.copytree(prefix, moved, ignore=shutil.ignore_patterns("*.so*"))
    flags = run(tool("pkg-config"), "--static", "--cflags", "--libs", "dynadapt", env={"PKG_CONFIG_PATH": str(moved / "lib" / "pkgconfig")})
    run(tool("gcc"), "-std=c11", f"-I{EXAMPLES}", EXAMPLES / "c" / "adapt.c", "-o", tmp_path / "adapt", *shlex.split(flags))
    check_static_program(tmp_path / "adapt")


def test_static_library_shows_the_c_abi_alone(prefix):
    """The same functions as the shared one. Unique symbols (u) stay what they are: constants that a program has once."""
    lines = [
        line.split()[-2:]
        for line in run(tool("nm"), "-g", "--defined-only", prefix / "lib" / "libdynadapt.a").splitlines()
        if len(line.split()) == 3
    ]
    assert {name for kind, name in lines if kind != "u"} == functions(prefix / "lib" / "libdynadapt.so")


def test_another_version_is_refused_by_cmake(prefix, tmp_path):
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.25)\nproject(asks NONE)\n"
        'find_package(dynadapt 0.1 REQUIRED)\nmessage("0.1: ${dynadapt_VERSION}")\n'
        'find_package(dynadapt 9.0 QUIET)\nmessage("9.0: ${dynadapt_FOUND}")\n'
    )
    command = [tool("cmake"), "-S", tmp_path, "-B", tmp_path / "build", f"-DCMAKE_PREFIX_PATH={prefix}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert f"0.1: {__version__}\n9.0: 0\n" in done.stderr


def test_command_line_names_what_is_there():
    done = run(sys.executable, "-m", "dynadapt", "--cmakedir", "--pkgconfigdir", "--includes", "--libs", cwd=ROOT)
    cmakedir, pkgconfigdir, includes, libs = done.splitlines()
    assert (Path(cmakedir) / "dynadaptConfig.cmake").exists() and (Path(pkgconfigdir) / "dynadapt.pc").exists()
    (include,) = shlex.split(includes)
    assert (Path(include.removeprefix("-I")) / "dynadapt" / "dynadapt.h").exists()
    directory, rpath, name = shlex.split(libs)
    assert name == "-ldynadapt" and directory.removeprefix("-L") == rpath.removeprefix("-Wl,-rpath,")
    assert (Path(directory.removeprefix("-L")) / "libdynadapt.so").exists()


def test_command_line_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(linking, "PACKAGE", tmp_path)
    with pytest.raises(FileNotFoundError, match="dynadaptConfig.cmake is missing: the native extension is not built"):
        linking.cmake_dir()


# ---- the boundary itself


@pytest.fixture(scope="module")
def library():
    loaded = ctypes.CDLL(str(linking.library_dir() / "libdynadapt.so"))
    loaded.dynadapt_last_error.restype = ctypes.c_char_p
    return loaded


# op -> arguments in front of params
STRUCTS = {
    "linear_forward": 9,
    "linear_backward": 8,
    "lora_gradient": 7,
    "weight_gradient": 4,
    "cross_entropy_weight_gradient": 6,
    "norm_forward": 7,
    "norm_backward": 10,
    "head_norm_forward": 5,
    "head_norm_backward": 8,
    "activation_forward": 2,
    "activation_backward": 4,
    "attention_forward": 9,
    "attention_backward": 11,
    "delta_rule_forward": 8,
    "delta_rule_backward": 10,
    "gated_norm_forward": 5,
    "gated_norm_backward": 8,
    "update": 13,
}
COUNTS = {"linear_forward": 2, "linear_backward": 2}  # where part_count stands among them


def refusal(library, op, params):
    """The text with which a call that has these bytes as its parameters, and no tensors, is refused."""
    arguments = [None] * STRUCTS[op]
    if op in COUNTS:
        arguments[COUNTS[op]] = 1
    status = getattr(library, f"dynadapt_{op}")(*arguments, params)
    assert status == INVALID, status
    return library.dynadapt_last_error().decode()


def struct(size, *values):
    """A parameter struct's bytes: struct_size, and 32-bit words behind it."""
    return (ctypes.c_uint32 * 2048)(size, *values)


@pytest.mark.parametrize("op", STRUCTS)
def test_parameter_struct_of_another_size_is_refused(library, op):
    assert "params.struct_size is 4, accepted is sizeof(*params): at least" in refusal(library, op, struct(4))
    assert "params.struct_size is 4000000000" in refusal(library, op, struct(4000000000))
    assert "params is NULL" in refusal(library, op, None)


def test_parameters_of_a_later_version_are_taken_only_where_they_are_zero(library):
    assert "x is missing" in refusal(library, "linear_forward", struct(56))  # 8 bytes more than known, zero: on to the next check
    said = refusal(library, "linear_forward", struct(56, *[0] * 11, 7))
    assert "params.struct_size is 56 and byte 48 is set: a parameter that this library (ABI version 2) does not know" in said


def test_parameters_of_the_first_version_are_taken(library):
    """Callers built before parts had ranks of their own give fewer bytes."""
    assert "x is missing" in refusal(library, "linear_forward", struct(8))
    assert "params.struct_size is 8" in refusal(library, "lora_gradient", struct(8))
    assert "dy is missing" in refusal(library, "lora_gradient", struct(24))


def test_error_text_belongs_to_its_thread(library):
    assert refusal(library, "linear_forward", None) == "linear_forward: params is NULL"
    seen = {}

    def elsewhere():
        seen["at first"] = library.dynadapt_last_error().decode()
        seen["then"] = refusal(library, "update", None)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == {"at first": "", "then": "update: params is NULL"}
    assert library.dynadapt_last_error().decode() == "linear_forward: params is NULL"
