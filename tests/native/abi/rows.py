"""A good call of every exported function, argument by argument, and what else is wrong for each argument than what its type
says: numbers out of range, indices that point nowhere.

N = 6 rows of 2 streams, K = 8, two parts of 5 rows each, rank 2.
"""

from __future__ import annotations

from dataclasses import dataclass, field

INT_MIN, INT_MAX = -(2**31), 2**31 - 1
NAN, INF = float("nan"), float("inf")


@dataclass
class T:
    """A tensor. ``bad``: values that no entry may have; ``in_place``: arguments whose memory it may be."""

    shape: tuple
    dtype: str = "f32"
    out: bool = False
    optional: bool = False
    values: tuple | None = None
    bad: tuple = ()
    in_place: tuple = ()


@dataclass
class Matrix:
    rows: int = 5
    columns: int = 8
    optional: bool = False


@dataclass
class Parts:
    count: int = 2


@dataclass
class Number:
    value: float
    bad: tuple = ()


@dataclass
class DType:
    """A DLDataType, as (code, bits, lanes)."""

    value: tuple
    bad: tuple = ()


@dataclass
class Struct:
    """Parameters. ``fields``: name -> (value, wrong values), of all but struct_size; ``sizes``: of arrays that a field points to."""

    name: str
    fields: dict


@dataclass
class Array:
    """Plain memory, of int32, float32 or 16 bits."""

    count: int
    dtype: str = "i32"
    out: bool = False
    optional: bool = False
    values: tuple | None = None
    bad: tuple = ()


@dataclass
class Result:
    """A struct that the call fills."""

    name: str
    optional: bool = False
    fields: dict = field(default_factory=dict)


@dataclass
class Handle:
    """The engine."""


@dataclass
class Text:
    """A path; ``bad``: what is there and is not what the call needs."""

    value: str
    bad: tuple = ()


@dataclass
class Word:
    """One of some words; ``bad``: others."""

    value: str
    bad: tuple = ()


@dataclass
class Slot:
    """Where a new handle goes; ``destroy`` is the function that takes it."""

    destroy: str


def out(*shape, **options):
    return T(shape, out=True, **options)


def may(*shape, **options):
    return T(shape, optional=True, **options)


def may_out(*shape, **options):
    return T(shape, out=True, optional=True, **options)


def indices(values, high, low=0, dtype="i32", **options):
    limits = (-(2**63), 2**63 - 1) if dtype == "i64" else (INT_MIN, INT_MAX)
    return T((len(values),), dtype, values=tuple(values), bad=(low - 1, high, *limits), **options)


ANY = ()  # a field that may have any value
NUMBER = (NAN, INF, -INF)
POSITIVE = (*NUMBER, -1.0)
SIZE = (0, -1, INT_MIN, INT_MAX)
HEADS = {"query_heads": (2, SIZE), "kv_heads": (1, SIZE), "head_dim": (4, SIZE)}  # [*, 16], out [*, 8]
SLOTS = indices((1, 0), 2)
TARGETS = T((6,), "i64", values=(0, 4, -1, 2, 3, 1), bad=(5, 2**63 - 1))

PART_RANKS = {
    "part_ranks": ((2, 2), (None, (3, 1), (-1, 2), (2, INT_MAX), (2**63 - 1, 2), (1, 1), (0, 0))),
    "part_scales": ((0.5, 2.0), (None, (NAN, 0.5), (0.5, INF))),
    "slot_count": (0, (-1, -(2**63), 2**63 - 1)),  # of slots that differ: tests/ops/test_slot_adapters.py
    "slot_table": (None, ANY),
    "slot_scales": (None, ANY),
}
LINEAR = Struct("dynadapt_linear_params", {"scale": (0.5, NUMBER), **PART_RANKS})
CAP = (NAN, INF, -INF, -1.0)
GRADIENT = Struct("dynadapt_gradient_params", {"accumulate": (0, ANY), "softcap": (0.0, (*CAP, 2.0)), "scale": (0.0, (NAN, 2.0))})
HEAD_GRADIENT = Struct("dynadapt_gradient_params", {"accumulate": (0, ANY), "softcap": (2.0, CAP), "scale": (0.0, (NAN, 2.0))})
LOGITS = Struct("dynadapt_cross_entropy_params", {"softcap": (2.0, CAP), "scale": (0.0, (NAN, 2.0))})
HEAD_ADAPTERS = {"Bt": T((2, 2, 5)), "slots": T((6,), "i32", values=(1, 1, 1, 0, 0, 0), bad=(-1, 2, INT_MIN, INT_MAX))}
COUNT = Number(2, (0, -1, 1000, INT_MIN, INT_MAX))
MEMORY = {"mem_k": may(2, 3, 4), "mem_v": may(2, 3, 4), "mem_len": may(2, dtype="i32", values=(3, 0), bad=(-1, 4, INT_MIN, INT_MAX))}
ROTATION = {"cos": may(6, 2), "sin": may(6, 2)}
ATTENTION = Struct("dynadapt_attention_params", {**HEADS, "scale": (0.5, NUMBER), "window": (2, (1, -1, INT_MIN)), "softcap": (2.0, CAP)})
LENGTHS = {"slots": SLOTS, "lengths": T((2,), "i32", optional=True, values=(3, 0), bad=(-1, 4, INT_MIN, INT_MAX))}
CONVOLUTION = {"weight": T((8, 3)), "state": may(2, 2, 8), **LENGTHS}
GATES = {"a": T((6, 4)), "b": T((6, 4)), "a_log": T((4,)), "dt_bias": T((4,))}
DELTA_RULE = {"qkv": T((6, 10)), "g": T((6, 2)), "beta": T((6, 2)), "state": may(2, 2, 3, 2), **LENGTHS}
DELTA_PARAMS = Struct(
    "dynadapt_delta_rule_params",
    {
        "key_heads": (1, SIZE),
        "value_heads": (2, SIZE),
        "key_dim": (3, SIZE),
        "value_dim": (2, SIZE),
        "scale": (0.5, NUMBER),
        "eps": (1e-6, POSITIVE),
    },
)
UPDATE = Struct(
    "dynadapt_update_params",
    {
        "kind": (2, (-1, 5, INT_MIN, INT_MAX)),
        "decay": (0.1, (*POSITIVE, 1.5)),
        "clip": (1.0, (NAN, -1.0, -INF)),
        "beta1": (0.9, (*POSITIVE, 1.5)),
        "beta2": (0.99, (*POSITIVE, 1.5)),
        "eps": (1e-8, POSITIVE),
        "weight_decay": (0.1, POSITIVE),
        "momentum": (0.0, (*POSITIVE, 1.5)),
        "rate_factor": (None, ANY),  # a tensor: tests/native/test_update.py
    },
)
ENGINE = Struct(
    "dynadapt_engine_params",
    {
        "dtype": (1, (-1, 2, INT_MIN, INT_MAX)),
        "streams": (2, (*SIZE, 65536)),
        "segment": (4, SIZE),
        "every": (1, (0, -1, INT_MIN)),
        "memory_length": (4, (-1, INT_MIN, INT_MAX)),
        "memory_sinks": (1, (-1, INT_MIN, INT_MAX)),
        "rank": (2, (-1, 5000, INT_MIN, INT_MAX)),
        "alpha": (4.0, POSITIVE),
        "targets": ("all", ("", "none", None)),
        "first_layer": (0, (-1, INT_MAX, INT_MIN)),
        "last_layer": (-1, (0, -2, INT_MAX, INT_MIN)),
        "seed": (3, ANY),
        "optimizer": (1, (-1, 3, INT_MIN, INT_MAX)),
        "lr": (0.01, POSITIVE),
        "beta1": (0.9, (*POSITIVE, 1.0)),
        "beta2": (0.99, (*POSITIVE, 1.0, 0.0)),
        "eps": (1e-8, (*POSITIVE, 0.0)),
        "clip": (1.0, POSITIVE),
        "decay": (0.0, (*POSITIVE, 1.5)),
        "weight_decay": (0.0, (*POSITIVE, 0.5)),
        "momentum": (0.0, (*POSITIVE, 0.5)),
        "base": (0, (-1, 2, INT_MIN, INT_MAX)),
    },
)
OF_ENGINE = {"engine": Handle(), "stream": Number(1, (-1, 2, INT_MIN, INT_MAX))}

ROWS = {
    "abi_version": {},
    "last_error": {},
    "isa": {},
    "num_threads": {},
    "vnni": {},
    "nvtx": {},
    "peak_flops": {"bf16": Number(0, (2, -1, INT_MIN, INT_MAX)), "repetitions": Number(10, (0, -1, -(2**63), 2**63 - 1))},
    "set_num_threads": {"threads": Number(1, (-1, 4097, INT_MIN, INT_MAX))},
    "matrix_create": {"weight": T((5, 8)), "out": Slot("dynadapt_matrix_destroy")},
    "matrix_create_int8": {
        "weight": T((5, 8)),
        "dtype": DType((2, 32, 1), bad=((2, 64, 1), (2, 16, 1), (4, 32, 1), (0, 32, 1), (2, 32, 2), (0, 0, 0), (255, 255, 65535))),
        "out": Slot("dynadapt_matrix_destroy"),
    },
    "matrix_create_quantised": {
        "storage": Word("q4_0", ("", "q5_1", "Q4_0", "float32", "x" * 1000)),
        "rows": Number(5, (0, -1, 6, 2**46, 2**62, -(2**63), 2**63 - 1)),
        "columns": Number(32, (0, -1, 8, 33, 64, 2**46, -(2**63), 2**63 - 1)),
        "blocks": Array(45, "bf16"),
        "bytes": Number(90, (0, -1, 89, 91, 2**62, -(2**63), 2**63 - 1)),
        "bf16": Number(0, (2, -1, INT_MIN, INT_MAX)),
        "out": Slot("dynadapt_matrix_destroy"),
    },
    "matrix_destroy": {"matrix": Matrix(optional=True)},
    "matrix_rows": {"matrix": Matrix()},
    "matrix_columns": {"matrix": Matrix()},
    "matrix_bytes": {"matrix": Matrix()},
    "matrix_dtype": {"matrix": Matrix()},
    "matrix_storage": {"matrix": Matrix()},
    "matrix_gather_rows": {"matrix": Matrix(), "index": indices((4, 0, 4), 5, dtype="i64"), "out": out(3, 8)},
    "matrix_update_rows": {"matrix": Matrix(), "rows": indices((4, 1), 5, optional=True), "values": T((2, 8))},
    "matrix_unpack": {"matrix": Matrix(), "out": out(5, 8)},
    "linear_forward": {
        "x": T((6, 8)),
        "parts": Parts(),
        "part_count": COUNT,
        "bias": may(10),
        "A": T((2, 4, 8)),
        "Bt": T((2, 2, 10)),
        "slots": SLOTS,
        "u": out(6, 4),
        "y": out(6, 10),
        "params": LINEAR,
    },
    "linear_backward": {
        "dy": T((6, 10)),
        "parts": Parts(),
        "part_count": COUNT,
        "A": T((2, 4, 8)),
        "Bt": T((2, 2, 10)),
        "slots": SLOTS,
        "dU": out(6, 4),
        "dx": may_out(6, 8),
        "params": LINEAR,
    },
    "lora_gradient": {
        "dy": T((6, 10)),
        "x": T((6, 8)),
        "u": T((6, 4)),
        "dU": T((6, 4)),
        "slots": SLOTS,
        "dA": out(2, 4, 8),
        "dBt": out(2, 2, 10),
        "params": Struct(
            "dynadapt_lora_gradient_params",
            {
                "scale": (0.5, NUMBER),
                "accumulate": (0, ANY),
                "part_count": (2, COUNT.bad),
                "part_sizes": ((5, 5), ((0, 10), (-1, 11), (5, 6), (2**63 - 1, 2**63 - 1), None)),
                **PART_RANKS,
            },
        ),
    },
    "weight_gradient": {
        "dy": T((6, 10)),
        "x": T((6, 8)),
        "rows": indices((9, 0, 9), 10, optional=True),
        "dW": out(3, 8),
        "params": GRADIENT,
    },
    "row_scores": {"dy": T((6, 10)), "x": T((6, 8)), "out": out(10)},
    "bias_gradient": {"dy": T((6, 10)), "db": out(10)},
    "cross_entropy": {
        "h": T((6, 8)),
        "head": Matrix(),
        "targets": TARGETS,
        "weights": may(6),
        "nll": out(6),
        "lse": out(6),
        "dh": may_out(6, 8),
    },
    "distillation": {
        "h": T((6, 8)),
        "head": Matrix(),
        "targets": TARGETS,
        "ids": T((6, 2), "i64", values=(0, 4, -1, 2, 3, 1, 4, 0, 2, -1, 1, 3), bad=(5, 2**63 - 1)),
        "logp": T((6, 2)),
        "weights": may(6),
        "nll": out(6),
        "lse": out(6),
        "kl": out(6),
        "dh": may_out(6, 8),
        "params": LOGITS,
    },
    "softcapped_cross_entropy": {
        "h": T((6, 8)),
        "head": Matrix(),
        "targets": TARGETS,
        "weights": may(6),
        "nll": out(6),
        "lse": out(6),
        "dh": may_out(6, 8),
        "params": LOGITS,
    },
    "adapted_cross_entropy": {
        "h": T((6, 8)),
        "head": Matrix(),
        "A": T((2, 2, 8)),
        **HEAD_ADAPTERS,
        "targets": TARGETS,
        "weights": may(6),
        "u": out(6, 2),
        "nll": out(6),
        "lse": out(6),
        "dh": may_out(6, 8),
        "dU": may_out(6, 2),
        "params": Struct("dynadapt_cross_entropy_params", {"softcap": (2.0, CAP), "scale": (0.5, NUMBER)}),
    },
    "adapted_cross_entropy_gradient": {
        "h": T((6, 8)),
        "head": Matrix(),
        **HEAD_ADAPTERS,
        "targets": TARGETS,
        "weights": may(6),
        "lse": T((6,)),
        "u": T((6, 2)),
        "dU": T((6, 2)),
        "dA": out(2, 2, 8),
        "dBt": out(2, 2, 5),
        "params": Struct("dynadapt_gradient_params", {"accumulate": (0, ANY), "softcap": (2.0, CAP), "scale": (0.5, NUMBER)}),
    },
    "cross_entropy_weight_gradient": {
        "h": T((6, 8)),
        "head": Matrix(),
        "targets": TARGETS,
        "weights": may(6),
        "lse": T((6,)),
        "dW": out(5, 8),
        "params": HEAD_GRADIENT,
    },
    "norm_forward": {
        "x": T((6, 8)),
        "delta": may(6, 8),
        "weight": T((8,)),
        "bias": may(8),
        "res": out(6, 8, in_place=("x", "delta")),
        "y": out(6, 8, in_place=("x", "delta")),
        "stat": out(6, 2),
        "params": Struct("dynadapt_norm_params", {"kind": (1, (-1, 2, INT_MIN, INT_MAX)), "eps": (1e-5, POSITIVE)}),
    },
    "norm_backward": {
        "dy": T((6, 8)),
        "res": T((6, 8)),
        "weight": T((8,)),
        "stat": T((6, 2)),
        "dres": may(6, 8),
        "dx": out(6, 8, in_place=("dy", "dres")),
        "dweight": may_out(8),
        "dbias": may_out(8),
        "bias": may(8),
        "y": may_out(6, 8),
        "params": Struct("dynadapt_norm_params", {"kind": (1, (-1, 2, INT_MIN, INT_MAX)), "eps": (0.0, ANY)}),
    },
    "head_norm_forward": {
        "qkv": T((6, 16)),
        "q_weight": T((4,)),
        "k_weight": T((4,)),
        "out": out(6, 16, in_place=("qkv",)),
        "rstd": out(6, 3),
        "params": Struct("dynadapt_head_norm_params", {**HEADS, "eps": (1e-5, POSITIVE)}),
    },
    "head_norm_backward": {
        "dout": T((6, 16)),
        "qkv": T((6, 16)),
        "q_weight": T((4,)),
        "k_weight": T((4,)),
        "rstd": T((6, 3)),
        "dqkv": out(6, 16, in_place=("dout", "qkv")),
        "dq_weight": may_out(4),
        "dk_weight": may_out(4),
        "params": Struct("dynadapt_head_norm_params", {**HEADS, "eps": (0.0, ANY)}),
    },
    "activation_forward": {
        "h": T((6, 16)),
        "y": out(6, 8),
        "params": Struct("dynadapt_activation_params", {"kind": (0, (-1, 5, INT_MIN, INT_MAX))}),
    },
    "activation_backward": {
        "dy": T((6, 8)),
        "h": T((6, 16)),
        "dh": out(6, 16, in_place=("h",)),
        "y": may_out(6, 8),
        "params": Struct("dynadapt_activation_params", {"kind": (0, (-1, 5, INT_MIN, INT_MAX))}),
    },
    "embedding_forward": {
        "tokens": indices((4, 0, 2), 5, dtype="i64"),
        "table": T((5, 8)),
        "position_table": T((7, 8)),
        "positions": indices((6, 0, 6), 7, dtype="i64"),
        "out": out(3, 8),
    },
    "embedding_backward": {"tokens": indices((4, 0, 4), 5, dtype="i64"), "dout": T((3, 8)), "dtable": out(5, 8)},
    "adapted_embedding_forward": {
        "tokens": indices((4, 0, 4, 1, 1, 2), 5, dtype="i64"),
        "A": T((2, 2, 5)),
        "Bt": T((2, 2, 8)),
        "slots": SLOTS,
        "out": out(6, 8),
        "params": Struct("dynadapt_adapted_embedding_params", {"accumulate": (0, ANY), "scale": (0.5, NUMBER)}),
    },
    "adapted_embedding_backward": {
        "tokens": indices((4, 0, 4, 1, 1, 2), 5, dtype="i64"),
        "dout": T((6, 8)),
        "A": T((2, 2, 5)),
        "Bt": T((2, 2, 8)),
        "slots": SLOTS,
        "dA": out(2, 2, 5),
        "dBt": out(2, 2, 8),
        "params": Struct("dynadapt_adapted_embedding_params", {"accumulate": (0, ANY), "scale": (0.5, NUMBER)}),
    },
    "attention_forward": {
        "qkv": T((6, 16)),
        **MEMORY,
        "slots": SLOTS,
        **ROTATION,
        "out": out(6, 8),
        "lse": out(2, 2, 3),
        "params": ATTENTION,
    },
    "attention_backward": {
        "dout": T((6, 8)),
        "qkv": T((6, 16)),
        "out": T((6, 8)),
        "lse": T((2, 2, 3)),
        **MEMORY,
        "slots": SLOTS,
        **ROTATION,
        "dqkv": out(6, 16),
        "params": ATTENTION,
    },
    "short_convolution_forward": {"x": T((6, 8)), **CONVOLUTION, "y": out(6, 8), "final": may_out(2, 2, 8)},
    "short_convolution_backward": {"dy": T((6, 8)), "x": T((6, 8)), **CONVOLUTION, "dx": out(6, 8), "dweight": may_out(8, 3)},
    "delta_gates_forward": {**GATES, "g": out(6, 4), "beta": out(6, 4)},
    "delta_gates_backward": {
        "dg": T((6, 4)),
        "dbeta": T((6, 4)),
        **GATES,
        "da": out(6, 4, in_place=("a",)),
        "db": out(6, 4, in_place=("b",)),
        "da_log": may_out(4),
        "ddt_bias": may_out(4),
    },
    "delta_rule_forward": {**DELTA_RULE, "out": out(6, 4), "final": may_out(2, 2, 3, 2), "params": DELTA_PARAMS},
    "delta_rule_backward": {
        "dout": T((6, 4)),
        **DELTA_RULE,
        "dqkv": out(6, 10),
        "dg": out(6, 2),
        "dbeta": out(6, 2),
        "params": DELTA_PARAMS,
    },
    "gated_norm_forward": {
        "x": T((6, 8)),
        "gate": T((6, 8)),
        "weight": T((4,)),
        "y": out(6, 8),
        "rstd": out(6, 2),
        "params": Struct("dynadapt_gated_norm_params", {"head_dim": (4, SIZE), "eps": (1e-5, POSITIVE)}),
    },
    "gated_norm_backward": {
        "dy": T((6, 8)),
        "x": T((6, 8)),
        "gate": T((6, 8)),
        "weight": T((4,)),
        "rstd": T((6, 2)),
        "dx": out(6, 8, in_place=("dy", "x")),
        "dgate": out(6, 8, in_place=("gate",)),
        "dweight": may_out(4),
        "params": Struct("dynadapt_gated_norm_params", {"head_dim": (4, SIZE), "eps": (0.0, ANY)}),
    },
    "linear_mse": {
        "h": T((6, 8)),
        "weight": T((8,)),
        "bias": may(1),
        "target": T((6,)),
        "weights": may(6),
        "pred": out(6),
        "loss": out(6),
        "dh": may_out(6, 8),
        "dweight": may_out(8),
        "dbias": may_out(1),
    },
    "update": {
        "master": out(3, 8),
        "grad": out(3, 8),
        "first": out(3, 8),
        "second": out(3, 8),
        "prior": T((8,)),
        "stat": may(8),
        "working": may_out(3, 8),
        "slots": indices((2, -1, 0), 3, low=-1),
        "lr": T((3,)),
        "step": out(3, dtype="i32", values=(0, 1, 2)),
        "norms": out(3),
        "skipped": out(3, dtype="i32"),
        "prior_rate": may(8),
        "params": UPDATE,
    },
    "engine_params_default": {"params": Result("dynadapt_engine_params"), "struct_size": Number(0, (0, 4, 8, 4097, 2**32 - 1))},
    "engine_create": {"params": ENGINE, "model_dir": Text("model", ("", "missing", "file")), "out": Slot("dynadapt_engine_destroy")},
    "engine_destroy": {"engine": Handle()},
    "engine_step": {
        "engine": Handle(),
        "tokens": Array(8, values=(1, 2, 3, 4, 5, 6, 7, 8), bad=(-1, INT_MIN, INT_MAX)),
        "T": Number(3, (0, -1, 5, INT_MIN, INT_MAX)),
        "lengths": Array(2, optional=True, values=(3, 2), bad=(-1, 4, INT_MIN, INT_MAX)),
        "nll": Array(6, "f32", out=True),
        "report": Result("dynadapt_engine_report", True, {"outcome": 8, "grad_norm": 8}),
    },
    "engine_enter": OF_ENGINE,
    "engine_reset": OF_ENGINE,
    "engine_set_lr": {**OF_ENGINE, "lr": Number(0.01, POSITIVE)},
    "engine_save": {**OF_ENGINE, "directory": Text("saved", ("", "file"))},
    "engine_load_adapter": {**OF_ENGINE, "directory": Text("adapter", ("", "missing", "file"))},
    "engine_info": {"engine": Handle(), "info": Result("dynadapt_engine_info_t")},
}
