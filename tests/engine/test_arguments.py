"""Every public argument with every wrong kind of value: an error that names the argument and the value, and nothing else happens."""

import inspect
import re
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from engine_states import assert_equal, state_of

import dynadapt
from dynadapt import (
    RMS,
    SGD,
    Adam,
    AdamW,
    Engine,
    Full,
    Guard,
    Hypergradient,
    Lion,
    LoRA,
    Muon,
    Overlap,
    RowSparse,
    SegmentMemory,
    Selection,
)
from dynadapt.adapt.optimizers import Optimizer
from dynadapt.common.checks import shown
from dynadapt.common.update_rule import KINDS, direction
from dynadapt.engine.generation import generate, score_continuations
from dynadapt.model import ModelError, random_model, tiny_config
from dynadapt.model.fetch import cached

MODEL = random_model(tiny_config("llama"), seed=0, std=0.1)
VOCABULARY = MODEL.config.vocab_size
NAN, INF = float("nan"), float("inf")


class Thing:
    def __repr__(self):
        return "a thing"


WRONG = [NAN, INF, -INF, b"x", Thing(), Thing, {}, {1}, 1j, torch.ones(2), np.ones(2), torch.tensor(NAN), np.float64("nan"), "no such word"]
BY_KIND = {
    "integer": [*WRONG, None, True, np.True_, -1, 0, 1.0, 1.5, 2**70, "1", [], [1], torch.tensor(2), np.float32(2)],
    "size or none": [*WRONG, True, -1, 0, 1.0, 2**70, "1", [], [1]],
    "number": [*WRONG, None, True, -1, -1e-3, 1e39, "0.1", [], [0.1], torch.tensor(0.1)],
    "share": [*WRONG, None, True, -1, 1.001, "0.1", []],
    "positive": [*WRONG, None, True, 0, 0.0, -1, 1e39, 1e-60, "1", []],
    "positive or none": [*WRONG, True, 0, 0.0, -1, 1e39, 1e-60, "1", []],
    "pair": [
        *WRONG,
        None,
        True,
        0.9,
        [],
        [0.9],
        (0.9, 0.9, 0.9),
        (1, 0.9),
        (0.9, 1),
        (0.9, 0),
        (-0.1, 0.9),
        (NAN, 0.9),
        (0.9, INF),
        ("0.9", 0.9),
        (True, 0.9),
        (0.9, 1 - 1e-12),
    ],
    "flag": [*WRONG, None, 0, 1, 0.0, "True", [], [True]],
    "flag or none": [*WRONG, 0, 1, 0.0, "True", []],
    "word": [*WRONG, None, True, 0, "", "ALL", [], ["q_proj"], ("all",)],
    "linears": [*WRONG[:-1], None, True, 0, "", "ALL", [], ["q", 3], ("",)],  # the last may be an expression
    "some beside": [*WRONG, True, 0, "ALL", "norm", ["norms", "norms", 3], ["q"], [None]],
    "pattern": [*(value for value in WRONG if not isinstance(value, dict)), None, True, 0, "q=2", ["q"], [("q",)], {3: 2}],
    "layers": [*WRONG, True, 0, 3, (0, 2), [0, 1], range(0), range(-1, 2), range(0, 4, 2), slice(0, 2)],
    "reset": [*WRONG, None, True, 0, -5, 1.5, [], ["never"], "Never"],
    "seed": [*WRONG, None, True, 0.0, 2**70, -(2**64), "0", []],
    "setting": [*WRONG, True, 0, 3.0, 512, "", [], [1], Adam, torch.optim.Adam, object],
    "model": [NAN, b"x", Thing(), Thing, {}, 3, None, [], torch.ones(2), "no/such/place", ""],
    "guard": [*WRONG, True, 0, -1, 1.5, 2**70, "", "1", [], [1]],
    "quantiles or none": [
        *WRONG,
        True,
        0.9,
        [],
        [0.9],
        (0.1, 0.5, 0.9),
        (0.9, 0.9),
        (0.9, 0.1),
        (-0.1, 0.9),
        (0.1, INF),
        ("0.1", 0.9),
        (True, 2),
    ],
    "least 0": [*WRONG, None, True, -1, 1.0, 2**70, "1", []],
}
FIELDS = {
    LoRA: {
        "rank": "integer",
        "alpha": "positive or none",
        "targets": "linears",
        "layers": "layers",
        "rank_pattern": "pattern",
        "alpha_pattern": "pattern",
        "rslora": "flag",
        "keep_a": "flag",
        "rate_pattern": "pattern",
        "b_rate": "positive",
        "also": "some beside",
        "dora": "flag",
    },
    RowSparse: {"density": "positive", "select": "word", "every": "integer", "targets": "word", "layers": "layers"},
    Full: {"targets": "word", "layers": "layers"},
    SegmentMemory: {"length": "least 0", "sinks": "least 0", "refresh": "word"},
    Overlap: {"context": "integer", "begin": "least 0"},
    SGD: {"lr": "number", "momentum": "share", "decay": "share", "clip": "number"},
    Adam: {"lr": "number", "betas": "pair", "eps": "positive", "decay": "share", "clip": "number"},
    AdamW: {"lr": "number", "betas": "pair", "eps": "positive", "decay": "share", "clip": "number", "weight_decay": "number"},
    RMS: {"lr": "number", "eps": "positive", "decay": "share", "clip": "number"},
    Lion: {"lr": "number", "betas": "pair", "decay": "share", "clip": "number", "weight_decay": "number"},
    Muon: {
        "lr": "number",
        "momentum": "share",
        "betas": "pair",
        "eps": "positive",
        "weight_decay": "number",
        "decay": "share",
        "clip": "number",
    },
    Engine: {
        "model": "model",
        "adapt": "setting",
        "optimizer": "setting",
        "memory": "setting",
        "streams": "integer",
        "segment": "integer",
        "shared": "flag",
        "every": "integer",
        "accumulate": "flag",
        "reset": "reset",
        "dtype": "word",
        "backend": "word",
        "seed": "seed",
        "device": "word",
        "batch": "size or none",
        "recompute": "flag or none",
        "base": "word",
        "static": "flag or none",
        "guard": "guard",
        "slow": "setting",
        "keep": "setting",
        "learn_from": "setting",
        "hypergradient": "setting",
    },
    Guard: {"every": "integer", "share": "positive"},
    Selection: {"below": "positive or none", "above": "positive or none", "tokens": "quantiles or none"},
    Hypergradient: {"step": "positive", "limit": "positive"},
}


@pytest.mark.parametrize("kind", FIELDS, ids=lambda kind: kind.__name__)
def test_every_argument_is_in_the_table(kind):
    assert set(inspect.signature(kind).parameters) == set(FIELDS[kind])


def accepted(kind, name, value) -> bool:
    """What the lists of wrong values hold that one argument does take."""
    return name == "optimizer" and value is Adam


@pytest.mark.filterwarnings("ignore:window of")
@pytest.mark.parametrize("kind", FIELDS, ids=lambda kind: kind.__name__)
def test_wrong_values_are_named(kind):
    for name, values in FIELDS[kind].items():
        for value in BY_KIND[values]:
            if accepted(kind, name, value):
                continue
            given = (
                {name: value}
                if kind is not Engine
                else {"model": MODEL, "adapt": LoRA(2), "backend": "reference", "segment": 4, name: value}
            )
            with pytest.raises(ValueError) as caught:
                kind(**given)
                pytest.fail(f"{kind.__name__}({name}={value!r}) was accepted")
            said = str(caught.value)
            assert re.match(rf"{name}\b", said), (name, value, said)
            assert "expected" in said or "accepted" in said, said
            if name != "model" and name != "betas":
                assert shown(value) in said, (name, value, said)


@pytest.mark.parametrize(
    "options,message",
    [
        ({"memory": 512}, r"memory=512: expected SegmentMemory\(512\), Overlap\(512\) or None"),
        ({"adapt": "peft"}, "adapt='peft': expected LoRA.*'lora', 'rows', 'full'"),
        ({"adapt": Adam()}, "adapt=Adam"),
        ({"optimizer": LoRA()}, "optimizer=LoRA"),
        ({"optimizer": "adagrad"}, "optimizer='adagrad': expected.*'adam'"),
        ({"optimizer": torch.optim.SGD([torch.zeros(1, requires_grad=True)])}, r"optimizer=SGD[\s\S]*torch.optim makes"),
        ({"segment": 2**40}, "segment=1099511627776"),
        ({"segment": 2**30}, "segment=1073741824.*at most 16777216"),
        ({"streams": 2**30, "segment": 8}, "streams=1073741824"),
        ({"memory": SegmentMemory(2**30)}, "segment=.*memory=SegmentMemory"),
        ({"dtype": "fp64", "backend": "cpu"}, "dtype='fp64' with backend='cpu'.*reference"),
        ({"dtype": "fp64", "backend": "triton"}, "dtype='fp64' with backend='triton'"),
        ({"adapt": None, "optimizer": "adam"}, "optimizer=Adam.*adapt=None"),
        ({"adapt": "none", "optimizer": Adam()}, "adapt=None"),
        ({"base": "float8", "backend": "reference", "dtype": "fp32", "adapt": Full()}, "base='float8' with adapt=Full.*none is frozen"),
        (
            {"base": "float8", "backend": "triton"},
            r"base='float8' with backend='triton': the weights qkv of layer 0 are \[100, 60\]; .*divisible by 16",
        ),
        ({"device": "cpu:1"}, "device='cpu:1'"),
        ({"device": "meta"}, "device='meta'"),
        ({"device": "cuda:-1"}, "device='cuda:-1'"),
        ({"device": torch.device("meta")}, "device=device"),
        ({"shared": True, "reset": 5}, "reset=5 with shared=True"),
    ],
)
def test_what_does_not_fit_is_named_with_a_remedy(options, message):
    with pytest.raises(ValueError, match=message):
        Engine(MODEL, **{"adapt": LoRA(2), **options})


def test_heads_that_no_gpu_kernel_holds_are_refused():
    config = replace(tiny_config("llama"), layers=1, heads=2, kv_heads=1, head_dim=258)
    with pytest.raises(ValueError, match="backend='triton': its attention takes heads of up to 256, this model's have 258"):
        Engine(random_model(config), backend="triton", segment=4)
    qkv, out, lse = torch.randn(2, 4 * 258), torch.zeros(2, 2 * 258), torch.zeros(1, 2, 2)
    attention = dynadapt.ops.resolve("attention_forward", "triton", torch.float32).function
    with pytest.raises(ValueError, match="d is 258, accepted is up to 256"):
        attention(qkv, None, None, None, torch.zeros(1, dtype=torch.int32), None, None, 2, 1, 258, 1.0, out, lse)


@pytest.mark.parametrize(
    "options,ops",
    [
        ({"memory": SegmentMemory(4)}, "memory_advance, memory_fill"),
        ({"reset": "auto"}, "reset"),
        ({"optimizer": SGD(clip=0)}, "lora_gradient_update"),
        ({"adapt": Full(), "optimizer": SGD(clip=0), "memory": SegmentMemory(4)}, "weight_gradient_update, memory_advance, memory_fill"),
    ],
)
def test_ops_that_nothing_serves_are_named_when_the_engine_is_made(options, ops):
    given = {"adapt": LoRA(2), "backend": "cpu", "segment": 4, "dtype": "fp32", **options}
    with pytest.raises(
        dynadapt.ops.UnsupportedOp, match=f"^backend='cpu' with dtype='fp32', static=True: nothing serves {ops}: .*use static=False"
    ):
        Engine(MODEL, static=True, **given)
    Engine(MODEL, static=False, **given)


def test_an_optimizer_of_ones_own_is_refused_where_no_kernel_knows_it():
    @dataclass(frozen=True)
    class Sign(Optimizer):
        lr: float = 1e-3
        decay: float = 0.01
        clip: float = 0.0
        kind = "sign"

    options = {"adapt": LoRA(2), "optimizer": Sign(), "segment": 4, "dtype": "fp32"}
    for backend in ("reference", "cpu", "triton"):
        with pytest.raises(ValueError, match=rf"^optimizer=.*Sign\(.*\) with backend='{backend}': .*sign"):
            Engine(MODEL, backend=backend, **options)
    direction("sign", flops=lambda rule: 2)(lambda g, state, rule, lr, step: lr * g.sign())
    try:
        e = Engine(MODEL, backend="reference", **options)
        e.step(GOOD[:1, :5])
        assert e.updates == 1
        with pytest.raises(ValueError, match=r"^optimizer=.*Sign\(.*\) with backend='cpu'"):
            Engine(MODEL, backend="cpu", **options)
    finally:
        del KINDS["sign"]


@pytest.mark.filterwarnings("ignore:window of")
def test_plain_words_and_classes_are_their_defaults(tmp_path):
    from tiny import tiny_directory

    where = tiny_directory(tmp_path / "model")
    options = {"segment": 4, "backend": "reference", "dtype": "fp32"}
    for words, settings in [
        ({"adapt": "lora"}, {"adapt": LoRA()}),
        ({"adapt": LoRA}, {"adapt": LoRA()}),
        ({"adapt": "rows"}, {"adapt": RowSparse()}),
        ({"adapt": "full", "optimizer": "sgd"}, {"adapt": Full(), "optimizer": SGD()}),
        ({"adapt": "none"}, {}),
        ({"adapt": "lora", "optimizer": Adam}, {"adapt": LoRA(), "optimizer": Adam()}),
        ({"adapt": "rows", "optimizer": "rms"}, {"adapt": RowSparse(), "optimizer": RMS()}),
        ({"memory": SegmentMemory}, {"memory": SegmentMemory()}),
        ({"streams": np.int64(2)}, {"streams": 2}),
        ({"adapt": LoRA(np.int32(2), np.float32(4))}, {"adapt": LoRA(2, 4.0)}),
        ({"device": torch.device("cpu")}, {}),
    ]:
        a, b = Engine(MODEL, **options, **words), Engine(MODEL, **options, **settings)
        assert a.describe() == b.describe() and (a.adapt, a.optimizer, a.memory) == (b.adapt, b.optimizer, b.memory)
    for model in (where, str(where), where / "model.safetensors"):
        e = Engine(model, **options)
        assert e.step([[1, 2, 3]]).isfinite().all()
    with pytest.raises(ModelError, match="model 'smollm2-135m' is not in the cache|^$"):
        if cached("smollm2-135m") is not None:
            raise ModelError("")
        Engine("smollm2-135m")


@pytest.mark.model
def test_a_known_name_is_a_model(smollm2_directory):
    assert Engine("smollm2-135m", segment=4).step([[1, 2, 3]]).isfinite().all()


# ---- calls


def engine(**options):
    return Engine(
        MODEL,
        **{"adapt": LoRA(2), "streams": 2, "segment": 6, "memory": SegmentMemory(8, 1), "backend": "reference", "dtype": "fp32", **options},
    )


GOOD = torch.randint(VOCABULARY, (2, 7), generator=torch.Generator().manual_seed(0))
TOKENS = [
    None,
    3,
    "text",
    b"text",
    NAN,
    [],
    [[]],
    [[1, 2], [3]],
    [["a", "b"], ["c", "d"]],
    [[1.0, 2.0], [3.0, 4.0]],
    GOOD.float(),
    GOOD.double(),
    GOOD > 3,
    GOOD * 1j,
    GOOD.float() * NAN,
    GOOD.numpy().astype(float),
    GOOD.numpy() > 3,
    GOOD[:, :0],
    GOOD[:0],
    GOOD[:, :1],
    GOOD[:1],
    GOOD.repeat(2, 1),
    GOOD.repeat(1, 2),
    GOOD[0],
    GOOD[None],
    -GOOD - 1,
    GOOD + VOCABULARY,
    [[2**70, 1, 2], [1, 2, 3]],
    GOOD.to("meta"),
    GOOD.to_sparse(),
    np.array([[1, None], [2, 3]], dtype=object),
    {1: 2},
    Thing(),
    GOOD.numpy().astype(np.uint64) + 2**63,
    np.full((2, 3), "a"),
]
NUMBERS = [
    3,
    1.5,
    "11",
    b"11",
    NAN,
    [1],
    [1, 2, 3],
    [1, -1],
    [1.0, 2.0],
    [True, False],
    [None, 1],
    ["1", "1"],
    [1, 2**40],
    [1, NAN],
    {0: 1, 1: 1},
    {0, 1},
    [[1, 1]],
    torch.tensor([1.0, 1.0]),
    torch.tensor([True, False]),
    torch.tensor(1),
    np.array([1.0, 1.0]),
    np.array([[1, 1]]),
    Thing(),
    [Thing(), 1],
]
STREAM = [None, -1, 2, 0.0, 0.5, True, "0", [0], NAN, torch.tensor(0), torch.tensor(0.5), Thing(), 2**70]
LR = [-1, NAN, INF, "0.1", True, [0.1], 1e39, torch.tensor(0.1), Thing()]
PATHS = [None, 3, b"x", True, [], NAN, Thing(), ""]
STREAMS = [*[n for n in NUMBERS if type(n) is not list or n != [1]], [], [0, 0], [0, 2]]
STEP = {
    "tokens": TOKENS,
    "lengths": [*NUMBERS, [7, 1]],
    "streams": STREAMS,
    "weights": [
        3,
        "11",
        NAN,
        [1],
        [1, 2, 3],
        [1, -1],
        [True, False],
        [None, 1],
        ["1", "1"],
        [1, NAN],
        [1, INF],
        [1, 1e39],
        {0: 1, 1: 1},
        {0, 1},
        [[1, 1]],
        torch.tensor([True, False]),
        torch.tensor(1),
        np.array([[1, 1]]),
        Thing(),
        [Thing(), 1],
    ],
}
CALLS = {
    "step": STEP,
    "forward_backward": {
        **STEP,
        "loss": [None, 3, "KL", "cross-entropy", ["kl"], NAN, Thing(), "kl", "importance_sampling"],  # the last two take inputs
        "inputs": [{"logp": [[-1.0] * 6] * 2}, 3, "logp", [1], NAN, {"weights": 1}, Thing()],
    },
    "optim_step": {"streams": STREAMS, "lr": LR},
    "score": {
        "tokens": [
            t
            for t in TOKENS
            if t is not None and not (isinstance(t, torch.Tensor) and t.shape in ((1, 7), (4, 7), (2, 14)) and t.dtype == torch.int64)
        ],
        "stream": STREAM,
    },
    "enter": {
        "stream": STREAM,
        "lr": LR,
        "adapter": [path for path in PATHS if path is not None],
        "prior": [*BY_KIND["flag"], True],  # without an adapter
    },
    "snapshot": {"stream": STREAM},
    "set_lr": {"stream": STREAM, "lr": [*LR, None]},
    "reset": {"stream": STREAM},
    "save": {"directory": PATHS},
    "restore": {"directory": PATHS},
    "load_adapter": {"directory": PATHS, "stream": STREAM},
    "gather_statistics": {
        "segments": [None, 3, "text", [], GOOD[0], [[1]], [[1.0, 2.0]], [GOOD], [GOOD[0] + VOCABULARY], [GOOD[0], -GOOD[0] - 1], Thing()]
    },
    "generate": {
        "prompt": [None, 3, "text", [], [1.0], [True], [-1], [VOCABULARY], [[1, 2]], GOOD.float()[0], Thing()],
        "limit": BY_KIND["integer"],
        "stop": [3, "stop", [1], None],
        "stream": STREAM,
        "repetition_penalty": [0, -1, NAN, INF, "1.5", True, None, Thing()],
        "choose": [3, "greedy", [1], True],
    },
    "score_continuations": {
        "rows": [[[1]], [[1.0, 2.0]], [[1, VOCABULARY]], [[-1, 2]], ["text"], [list(range(99))], [[True, False]], [3]],
        "counts": [3, None, "1", [0], [3], [1.0], [True], [1, 1], []],
        "stream": STREAM,
    },
}
OTHERS = {
    "step": {"tokens": GOOD},
    "forward_backward": {"tokens": GOOD},
    "optim_step": {},
    "score": {"tokens": GOOD},
    "enter": {"stream": 0},
    "snapshot": {},
    "set_lr": {"stream": 0, "lr": 0.1},
    "reset": {},
    "save": {},
    "restore": {},
    "load_adapter": {"directory": "no/such/place"},
    "gather_statistics": {},
    "generate": {"prompt": [1, 2], "limit": 2},
    "score_continuations": {"rows": [[1, 2, 3]], "counts": [1]},
}
FREE = {"generate": generate, "score_continuations": score_continuations}


@pytest.mark.parametrize("call", CALLS)
def test_wrong_values_of_calls_are_named_and_change_nothing(call):
    options = {"adapt": RowSparse(0.3), "optimizer": RMS()} if call == "gather_statistics" else {}
    e, twin = engine(**options), engine(**options)
    function = (lambda **given: FREE[call](e, **given)) if call in FREE else getattr(e, call)
    assert set(inspect.signature(FREE.get(call, getattr(Engine, call, None))).parameters) - {"self", "engine"} == set(CALLS[call])
    if not options:
        for each in (e, twin):
            each.step(GOOD)
    before = state_of(e)
    for name, values in CALLS[call].items():
        for value in values:
            with pytest.raises(ValueError) as caught:
                function(**{**OTHERS[call], name: value})
                pytest.fail(f"{call}({name}={value!r}) was accepted")
            said = {"counts": ("rows",), "loss": ("inputs",)}.get(name, ())  # what else may be wrong then
            assert re.match(rf"{name}\b", str(caught.value)) or str(caught.value).startswith(said), (name, value, str(caught.value))
    assert_equal(before, state_of(e))
    for each in (e, twin):
        if options:
            each.gather_statistics(list(GOOD))
    assert torch.equal(e.step(GOOD.flip(0)), twin.step(GOOD.flip(0)))
    assert_equal(state_of(e), state_of(twin), but=["last"])


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize(
    "tokens",
    [
        GOOD.int(),
        GOOD.to(torch.uint8),
        GOOD.to(torch.int16),
        GOOD.tolist(),
        GOOD.numpy(),
        GOOD.numpy().astype(np.int32),
        GOOD.numpy()[:, ::-1][:, ::-1],
        torch.cat([GOOD, GOOD], 1)[:, ::2][:, [0, 4, 1, 5, 2, 6, 3]],
        GOOD.t().contiguous().t(),
        GOOD.numpy().astype(np.uint64),
        tuple(map(tuple, GOOD.tolist())),
    ],
    ids=lambda t: type(t).__name__,
)
def test_whole_numbers_of_every_kind_are_tokens(static, tokens):
    assert torch.equal(engine(static=static).step(tokens), engine(static=static).step(GOOD))


def test_whole_numbers_of_every_kind_are_lengths_streams_and_weights():
    expected = engine(streams=3).step(GOOD, [3, 6], [2, 0], [0.5, 1.0])
    for make in (list, tuple, np.array, torch.tensor, iter, lambda v: [np.asarray(x)[()] for x in v], lambda v: (x for x in v)):
        assert torch.equal(engine(streams=3).step(GOOD, make([3, 6]), make([2, 0]), make([0.5, 1.0])), expected)


def test_whole_numbers_that_no_int64_holds_are_numbers():
    huge = 10**30
    e = Engine(MODEL, LoRA(2), optimizer=SGD(lr=huge), segment=4, streams=2, backend="cpu", dtype="fp32")
    e.set_lr(0, huge)
    e.enter(1, huge)
    assert e.lr.tolist() == torch.full((2,), 1e30).tolist()
    assert e.generate([1, 2], 3, repetition_penalty=huge).ids == e.generate([1, 2], 3, repetition_penalty=1e30).ids
    assert e.generate([1, 2], 3, temperature=huge, seed=1).ids == e.generate([1, 2], 3, temperature=1e30, seed=1).ids


def test_read_only_and_reversed_arrays_are_taken_as_they_are():
    tokens = GOOD.numpy().copy()[:, ::-1]
    tokens.flags.writeable = False
    assert torch.equal(engine().step(tokens), engine().step(GOOD.flip(1)))


# ---- load and attach


@pytest.mark.parametrize("source", BY_KIND["model"], ids=shown)
def test_load_names_what_is_no_model(source):
    with pytest.raises(ModelError, match="^model"):
        dynadapt.load(source)


@pytest.mark.parametrize("dtype", ["bf16", 3, torch.int64, True, NAN, [], Thing()], ids=shown)
def test_load_names_what_is_no_dtype(dtype):
    with pytest.raises(ModelError, match="^dtype = "):
        dynadapt.load(MODEL, dtype)


def test_load_converts_a_model_that_is_loaded_already():
    assert dynadapt.load(MODEL) is MODEL
    model = dynadapt.load(MODEL, torch.bfloat16)
    name = "embed.weight"
    assert model.tensor(name).dtype == torch.bfloat16 and torch.equal(model.tensor(name), MODEL.tensor(name).bfloat16())
    assert MODEL.tensor(name).dtype == torch.float32


def test_attach_takes_what_the_engine_takes():
    from helpers import to_transformers

    live = to_transformers(MODEL)
    for name, value in [
        ("adapt", 3),
        ("adapt", "peft"),
        ("dtype", 3),
        ("history", 1.5),
        ("history", True),
        ("segment", 0),
        ("optimizer", "adagrad"),
        ("memory", 512),
    ]:
        with pytest.raises(ValueError, match=f"^{name}="):
            dynadapt.attach(live, **{name: value})
    with dynadapt.attach(live, adapt="full", optimizer="sgd", segment=6, backend="reference") as session:
        assert isinstance(session.engine.adapt, Full)
        with pytest.raises(ValueError, match="^tokens is of float32"):
            session.step(GOOD[:1].float())
        assert session.step(GOOD[:1].numpy()).isfinite().all()
