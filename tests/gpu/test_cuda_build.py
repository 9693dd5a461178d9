"""The CUDA C++ library without a GPU: it compiles within its budgets, and arguments are checked before anything runs."""

import ctypes
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from dynadapt import _C

ROOT = Path(__file__).parents[2]
LIBRARIES = Path(_C.__file__).parent
NVCC = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
ARCHS = ("80", "90a", "100")
# Blocks of 256 threads: two of the optimizer step's, or four of the norm's, fit a multiprocessor's 65,536 registers.
REGISTERS = {"dynadapt_update_apply": 128, "dynadapt_update_norm": 64}
needs_nvcc = pytest.mark.skipif(NVCC is None, reason="nvcc was not found, so libdynadapt_cuda.so is not built here")


def resource_usage(source: Path, arch: str, folder: Path) -> dict[str, tuple[int, int, int]]:
    """Registers, stack bytes and spilled bytes of every kernel, from the compiler's own report."""
    done = subprocess.run(
        [
            NVCC,
            "-std=c++17",
            "-O3",
            "-fmad=false",
            f"-I{ROOT / 'csrc'}",
            f"-I{ROOT / 'csrc' / 'include'}",
            "-cubin",
            "--resource-usage",
            "-gencode",
            f"arch=compute_{arch},code=sm_{arch}",
            "-o",
            str(folder / "out.cubin"),
            str(source),
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found, name, stack, spilled = {}, "", 0, 0
    for line in (done.stdout + done.stderr).splitlines():
        if match := re.search(r"Compiling entry function '(\w+)'", line):
            name, stack, spilled = match[1], 0, 0
        elif match := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            stack, spilled = max(stack, int(match[1])), spilled + int(match[2]) + int(match[3])
        elif (match := re.search(r"Used (\d+) registers", line)) and name:
            found[name], name = (int(match[1]), stack, spilled), ""
    assert found, f"no kernel in the report of {source.name}"
    return found


def faults(usage: dict[str, tuple[int, int, int]]) -> list[str]:
    out = []
    for name, (registers, stack, spilled) in usage.items():
        budget = next((most for kernel, most in REGISTERS.items() if kernel in name), 255)
        if registers > budget or stack or spilled:
            out.append(f"{name}: {registers} registers (at most {budget}), {stack} bytes of stack, {spilled} bytes spilled")
    return out


@needs_nvcc
@pytest.mark.parametrize("arch", ARCHS)
def test_kernels_keep_their_budgets(arch, tmp_path):
    usage = resource_usage(ROOT / "csrc" / "cuda" / "update.cu", arch, tmp_path)
    for kernel in REGISTERS:
        assert any(kernel in name for name in usage), f"{kernel} is not in the report"
    assert not faults(usage), "\n".join(faults(usage))


@needs_nvcc
def test_a_kernel_that_spills_is_noticed(tmp_path):
    source = tmp_path / "planted.cu"
    source.write_text("""
        __global__ void __launch_bounds__(1024, 2) dynadapt_planted(float* x) {
          float v[64];
        #pragma unroll
          for (int i = 0; i < 64; ++i) v[i] = x[i * 1024 + threadIdx.x];
          for (int r = 0; r < 9; ++r) {
            __syncthreads();
        #pragma unroll
            for (int i = 0; i < 64; ++i) v[i] = v[i] * v[(i + 7) % 64] + v[(i + 31) % 64];
          }
        #pragma unroll
          for (int i = 0; i < 64; ++i) x[i * 1024 + threadIdx.x] = v[i];
        }""")
    assert faults(resource_usage(source, "90a", tmp_path))


@needs_nvcc
def test_the_library_is_installed_and_exports_one_function():
    library = LIBRARIES / "libdynadapt_cuda.so"
    assert library.exists(), f"{library} is missing although nvcc is here: build again"
    assert ctypes.CDLL(str(library)).dynadapt_cuda_library
    assert b"dynadapt_update_apply" in library.read_bytes()


def test_status_says_why_not():
    status = _C.cuda_status()
    assert status == "available" or re.match(r"libdynadapt_cuda\.so (finds no CUDA device|is not there) \(.+\)", status), status


def test_workspace_grows_with_streams_and_stays_small():
    assert _C.update_workspace(0, 100) == 0
    assert _C.update_workspace(3, 1000) == 3 * _C.update_workspace(1, 1000)
    assert _C.update_workspace(1, 0) >= 1
    assert _C.update_workspace(1, 10**10) < 1024


# --- the C ABI with tensors that say they are on a GPU ---------------------------------------------------------------


class Device(ctypes.Structure):
    _fields_ = [("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32)]


class DataType(ctypes.Structure):
    _fields_ = [("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16)]


class DLTensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device", Device),
        ("ndim", ctypes.c_int32),
        ("dtype", DataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


class Params(ctypes.Structure):
    _fields_ = [("struct_size", ctypes.c_uint32), ("kind", ctypes.c_int32)] + [
        (name, ctypes.c_double) for name in ("decay", "clip", "beta1", "beta2", "eps", "weight_decay", "momentum")
    ]


CODES = {torch.float32: (2, 32), torch.float64: (2, 64), torch.bfloat16: (4, 16), torch.int32: (0, 32)}
ORDER = [
    "master",
    "grad",
    "first",
    "second",
    "prior",
    "stat",
    "working",
    "slots",
    "lr",
    "step",
    "norms",
    "skipped",
    "prior_rate",
    "workspace",
]
CPU, CUDA = (1, 0), (2, 0)


def dl(tensor, device=CUDA):
    """``tensor`` as a DLTensor that says it is on ``device``; its memory stays where it is, and nothing may read it."""
    code, bits = CODES[tensor.dtype]
    shape = (ctypes.c_int64 * tensor.dim())(*tensor.shape)
    out = DLTensor(tensor.data_ptr(), Device(*device), tensor.dim(), DataType(code, bits, 1), shape, None, 0)
    out.keep = (tensor, shape)
    return out


def call(devices=None, slots=3, p=100, **change):
    """dynadapt_update (adam) on tensors that say they are on a GPU; returns the code and the text."""
    library = ctypes.CDLL(str(LIBRARIES / "libdynadapt.so"))
    library.dynadapt_last_error.restype = ctypes.c_char_p
    values = {name: torch.zeros(slots, p) for name in ("master", "grad", "first", "second")}
    values |= {
        "working": torch.zeros(slots, p, dtype=torch.bfloat16),
        "slots": torch.tensor([2, 0], dtype=torch.int32),
        "lr": torch.zeros(slots),
        "step": torch.zeros(slots, dtype=torch.int32),
        "norms": torch.zeros(2),
        "skipped": torch.zeros(2, dtype=torch.int32),
        "workspace": torch.zeros(_C.update_workspace(2, p), dtype=torch.float64),
    }
    values |= change
    tensors = [None if values.get(name) is None else dl(values[name], (devices or {}).get(name, CUDA)) for name in ORDER]
    params = Params(ctypes.sizeof(Params), 1, 0, 1.0, 0.9, 0.999, 1e-8, 0, 0)
    code = library.dynadapt_update(*(t and ctypes.byref(t) for t in tensors), ctypes.byref(params), None)
    return code, library.dynadapt_last_error().decode()


@pytest.mark.skipif(_C.cuda_status() == "available", reason="a GPU is here, and the tensors of this test only say they are on it")
def test_without_a_gpu_the_call_is_refused():
    assert call() == (1, f"update: master is on cuda:0, but {_C.cuda_status()}")


@pytest.mark.parametrize(
    "arguments, text",
    [
        (dict(devices={"grad": CPU}), "update: grad is on the CPU, accepted is cuda:0, like master"),
        (dict(devices={"slots": (2, 1)}), "update: slots is on cuda:1, accepted is cuda:0, like master"),
        (dict(devices={"master": CPU}), "update: slots is on cuda:0, accepted is the CPU, like master"),
        (dict(devices={"master": (10, 0)}), "update: master is on device type 10, accepted is the CPU or a CUDA device"),
        (dict(master=None), "update: master is missing, a tensor is needed"),
        (dict(workspace=None), "update: workspace is missing, a tensor is needed"),
        (dict(workspace=torch.zeros(3, dtype=torch.float64)), "update: workspace has 3 elements, accepted is 8 or more"),
        (dict(workspace=torch.zeros(100)), "update: workspace has dtype float32, accepted is float64"),
        (dict(second=None), "update: second is missing, a tensor is needed for adam and adamw"),
        (dict(lr=torch.zeros(2)), "update: lr has shape [2], accepted is [3]"),
    ],
)
def test_wrong_arguments_are_named_before_the_gpu_is_asked(arguments, text):
    assert call(**arguments) == (1, text)
