"""The engine of dynadapt.h through ctypes, for tests that hold it against dynadapt.Engine."""

import ctypes as c
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dynadapt import _C, Adam, Engine, LoRA, load
from dynadapt.model import random_model, tiny_config
from dynadapt.model.convert import write_directory

LIBRARY = Path(_C.__file__).with_name("libdynadapt.so")
DTYPES = {"bf16": 0, "fp32": 1}
SEGMENT = 12
OPTIMIZERS = {"sgd": 0, "adam": 1, "adamw": 2, "rms": 3, "lion": 4}
library = c.CDLL(str(LIBRARY))
library.dynadapt_last_error.restype = c.c_char_p


def fields(*runs):
    """[(name, type)] from runs of members of one type."""
    return [(name, kind) for kind, names in runs for name in names.split()]


class Params(c.Structure):
    _fields_ = fields(
        (c.c_uint32, "struct_size"),
        (c.c_int32, "dtype streams segment every memory_length memory_sinks rank"),
        (c.c_double, "alpha"),
        (c.c_char_p, "targets"),
        (c.c_int32, "first_layer last_layer"),
        (c.c_uint64, "seed"),
        (c.c_int32, "optimizer"),
        (c.c_double, "lr beta1 beta2 eps clip decay weight_decay momentum"),
        (c.c_int32, "base"),
    )


class Report(c.Structure):
    _fields_ = fields(
        (c.c_uint32, "struct_size"),
        (c.c_int32, "updated skipped"),
        (c.c_int64, "scored"),
        (c.c_double, "nll_sum"),
        (c.c_int64, "forward_flops backward_flops update_flops recompute_flops"),
        (c.POINTER(c.c_int32), "outcome"),
        (c.POINTER(c.c_float), "grad_norm"),
    )


class Info(c.Structure):
    _fields_ = fields(
        (c.c_uint32, "struct_size"),
        (c.c_int32, "streams segment window"),
        (c.c_int64, "layers hidden heads kv_heads head_dim ffn vocabulary max_positions"),
        (c.c_int64, "parameters learned_parameters bytes"),
        (c.c_char * 16, "family"),
    )


class Refused(Exception):
    """A call that returned an error code."""

    def __init__(self, code: int):
        self.code = code
        super().__init__(library.dynadapt_last_error().decode())


def check(code: int) -> None:
    if code:
        raise Refused(code)


def defaults(**options) -> Params:
    params = Params()
    check(library.dynadapt_engine_params_default(c.byref(params), c.sizeof(params)))
    for name, value in options.items():
        setattr(params, name, value)
    return params


class EngineC:
    def __init__(self, directory, **options):
        self.params, self.handle = defaults(**options), c.c_void_p()
        check(library.dynadapt_engine_create(c.byref(self.params), str(directory).encode(), c.byref(self.handle)))
        self.report = None

    def step(self, tokens: torch.Tensor, lengths=None) -> torch.Tensor:
        """nll [S, T] of int32 tokens [S, T+1]; ``report``, ``outcome`` and ``grad_norm`` say what the step did."""
        tokens = tokens.to(torch.int32).contiguous()
        streams, width = tokens.shape[0], tokens.shape[1] - 1
        nll = torch.full((streams, width), float("nan"))
        self.outcome, self.grad_norm = (c.c_int32 * streams)(), (c.c_float * streams)()
        self.report = Report(struct_size=c.sizeof(Report), outcome=self.outcome, grad_norm=self.grad_norm)
        counts = None if lengths is None else (c.c_int32 * streams)(*lengths)
        check(
            library.dynadapt_engine_step(
                self.handle, c.c_void_p(tokens.data_ptr()), width, counts, c.c_void_p(nll.data_ptr()), c.byref(self.report)
            )
        )
        return nll

    def enter(self, stream):
        check(library.dynadapt_engine_enter(self.handle, stream))

    def reset(self, stream):
        check(library.dynadapt_engine_reset(self.handle, stream))

    def set_lr(self, stream, lr):
        check(library.dynadapt_engine_set_lr(self.handle, stream, c.c_double(lr)))

    def save(self, stream, directory):
        check(library.dynadapt_engine_save(self.handle, stream, str(directory).encode()))

    def load_adapter(self, stream, directory):
        check(library.dynadapt_engine_load_adapter(self.handle, stream, str(directory).encode()))

    @property
    def flops(self) -> dict[str, int]:
        return {phase: getattr(self.report, f"{phase}_flops") for phase in ("forward", "backward", "update", "recompute")}

    @property
    def info(self) -> Info:
        info = Info(struct_size=c.sizeof(Info))
        check(library.dynadapt_engine_info(self.handle, c.byref(info)))
        return info

    def __del__(self):
        if self.handle:
            library.dynadapt_engine_destroy(self.handle)


# ---- both engines


def write(path, family="llama", dtype=torch.float32, seed=0, **changes):
    write_directory(random_model(tiny_config(family, **changes), seed=seed, std=0.1), path, dtype)
    return path


def text(streams, length, vocabulary, seed=0):
    return torch.randint(vocabulary, (streams, length), generator=torch.Generator().manual_seed(seed))


def pair(directory, dtype="fp32", streams=1, memory=None, adapt=LoRA(rank=3, alpha=6.0), optimizer=Adam(lr=3e-3), every=1, seed=5):
    """(the C engine, the Python engine) of one configuration."""
    python = Engine(
        load(str(directory)),
        adapt=adapt,
        optimizer=optimizer if adapt else None,
        memory=memory,
        streams=streams,
        segment=SEGMENT,
        every=every,
        dtype=dtype,
        backend="cpu",
        seed=seed,
    )
    options = {"dtype": DTYPES[dtype], "streams": streams, "segment": SEGMENT, "every": every, "rank": 0}
    if memory:
        options |= {"memory_length": memory.length, "memory_sinks": memory.sinks}
    if adapt:
        span = adapt.layers or range(0, python.config.layers)
        options |= {
            "rank": adapt.rank,
            "alpha": adapt.alpha,
            "targets": adapt.targets.encode(),
            "first_layer": span.start,
            "last_layer": span.stop,
            "seed": seed,
            "optimizer": OPTIMIZERS[optimizer.kind],
            "lr": optimizer.lr,
            "clip": optimizer.clip,
            "decay": optimizer.decay,
        }
        rule = optimizer.rule()
        names = ("momentum",) if optimizer.kind == "sgd" else ("beta1", "beta2", "eps", "weight_decay")
        options |= {name: getattr(rule, name) for name in names}
    return EngineC(directory, **options), python


def assert_same_steps(c, python, steps=4, lengths=None, seed=0):
    """Steps both and compares all that a step says. ``lengths``: of each step, or None for whole segments."""
    tokens = text(python.streams, steps * SEGMENT + 1, python.config.vocab_size, seed)
    for i in range(steps):
        piece, counts = tokens[:, i * SEGMENT : (i + 1) * SEGMENT + 1], lengths and lengths[i]
        expected, nll = python.step(piece, counts), c.step(piece, counts)
        assert torch.isfinite(expected).all() and expected.abs().sum() > 0
        assert torch.equal(nll, expected), (nll - expected).abs().max()
        assert c.flops == python.last.flops
        assert [norm if norm >= 0 else None for norm in c.grad_norm] == python.last.grad_norm
        assert list(c.outcome) == [1 if u else 2 if s else 0 for u, s in zip(python.last.updated, python.last.skipped)]
        assert c.report.updated == sum(python.last.updated) and c.report.scored == int((expected != 0).sum())
        assert c.report.nll_sum == pytest.approx(float(expected.double().sum()), rel=1e-12)


def assert_same_adapters(c, python, directory):
    python.save(directory / "python")
    for stream in range(python.streams if python.learners else 0):
        c.save(stream, directory / f"c-{stream}")
        theirs = directory / "python" / ("adapter" if python.streams == 1 else f"adapter-{stream}")
        ours = directory / f"c-{stream}"
        saved, expected = (load_file(str(place / "adapter_model.safetensors")) for place in (ours, theirs))
        assert saved.keys() == expected.keys() and all(torch.equal(saved[name], expected[name]) for name in expected)
        assert all(value.abs().sum() > 0 for value in saved.values()), "nothing was learned"
        assert json.loads((ours / "adapter_config.json").read_text()) == json.loads((theirs / "adapter_config.json").read_text())
