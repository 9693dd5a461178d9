"""A step completes or changes nothing: configurations drawn at random are refused by name when the engine is made, or step.

Each one that is accepted is then given calls that are wrong, and ops that fail in the middle: after either its next steps are
bit for bit those of a twin that never saw them.
"""

import random
import re
import time

import pytest
import torch
from engine_states import assert_equal, state_of

from dynadapt import RMS, SGD, Adam, AdamW, Engine, Full, Lion, LoRA, Muon, Overlap, RowSparse, SegmentMemory
from dynadapt.model import random_model, tiny_config
from dynadapt.ops import UnsupportedOp

MODELS = {family: random_model(tiny_config(family), seed=0, std=0.1) for family in ("llama", "qwen2", "qwen3", "gpt2")}
NAMES = (
    "adapt",
    "optimizer",
    "memory",
    "streams",
    "segment",
    "shared",
    "every",
    "accumulate",
    "reset",
    "dtype",
    "backend",
    "device",
    "batch",
    "base",
    "static",
    "layers",
    "window of",
    "targets",
    "guard",
)


def draw(rng: random.Random) -> tuple[str, dict]:
    """A family, and arguments of an engine; most fit together."""
    layers = rng.choice([None, None, range(0, 1), range(1, 3), range(2, 3), range(0, 9)])
    targets = rng.choice(["all", "attn", "mlp"])
    adapt = rng.choice(
        [
            None,
            LoRA(rng.choice([1, 2, 5]), rng.choice([1.0, 7]), targets, layers),
            LoRA(3),
            LoRA(2, targets=["q", "v", "up"] if rng.random() < 0.5 else "all", rank_pattern={"up": 3}, keep_a=rng.random() < 0.5),
            RowSparse(rng.choice([0.02, 0.3, 1.0]), rng.choice(["gradient", "fixed"]), rng.choice([1, 2]), targets, layers),
            Full(targets, layers),
            Full("model"),
        ]
    )
    common = {"lr": rng.choice([0.0, 1e-3, 0.1]), "clip": rng.choice([0.0, 0.0, 1.0])}
    optimizer = rng.choice(
        [
            None,
            Adam(decay=rng.choice([0.0, 0.1]), betas=rng.choice([(0.9, 0.99), (0.0, 0.5)]), **common),
            AdamW(**common),
            SGD(momentum=rng.choice([0.0, 0.9]), decay=rng.choice([0.0, 0.01]), **common),
            RMS(decay=rng.choice([0.0, 2e-3]), **common),
            Lion(betas=rng.choice([(0.9, 0.99), (0.0, 0.5)]), **common),
            Muon(momentum=rng.choice([0.0, 0.95]), decay=rng.choice([0.0, 0.1]), **common),
        ]
    )
    if adapt is None and rng.random() < 0.9:
        optimizer = None
    memory = rng.choice(
        [None, SegmentMemory(rng.choice([1, 5]), rng.choice([0, 2]), rng.choice(["keep", "reproject"])), Overlap(rng.choice([1, 4]))]
    )
    options = {
        "adapt": adapt,
        "optimizer": optimizer,
        "memory": memory,
        "streams": rng.choice([1, 2, 3]),
        "segment": rng.choice([1, 4, 7, 7]),
        "shared": rng.random() < 0.3,
        "every": rng.choice([1, 1, 2, 3]),
        "accumulate": rng.random() < 0.3,
        "reset": rng.choice(["never", "never", "document", "auto", 5]),
        "dtype": rng.choice(["fp32", "fp32", "bf16", "fp64"]),
        "backend": rng.choices(["reference", "cpu", "auto", "triton"], [5, 5, 1, 0.4])[0],
        "seed": rng.randrange(5),
        "device": rng.choices(["auto", "cpu", "cuda"], [5, 5, 0.3])[0],
        "batch": rng.choice([None, None, 1, 2]),
        "recompute": rng.random() < 0.3,
        "base": rng.choices(["same", "float8", "int8"], [5, 1, 2])[0],
        "static": rng.choice([None, True, False]),
    }
    if options["shared"] and rng.random() < 0.8:
        options.update(reset="never", batch=None)
    family = rng.choice(list(MODELS))
    return family, {**options, "guard": rng.choice([None, None, "exact", 2])}


def good(e: Engine, seed: int) -> dict:
    """The arguments of a step that fits."""
    rng = random.Random(seed)
    streams = rng.sample(range(e.streams), rng.randint(1, e.streams))
    width = rng.randint(1, e.segment)
    tokens = torch.randint(e.config.vocab_size, (len(streams), width + 1), generator=torch.Generator().manual_seed(seed))
    lengths = [rng.randint(0, width) for _ in streams]
    weight = lambda: rng.choice([0.0, 0.5, 2.0])  # noqa: E731
    return {
        "tokens": tokens,
        "streams": streams,
        "lengths": rng.choice([None, lengths]),
        "weights": rng.choice([None, [weight() for _ in streams], [[weight() for _ in range(width)] for _ in streams]]),
    }


def bad(e: Engine, fit: dict) -> list[dict]:
    """Arguments of steps that do not fit, each for one reason."""
    tokens, rows = fit["tokens"], len(fit["streams"])
    wrong = [
        {"tokens": t}
        for t in (
            tokens + e.config.vocab_size,
            tokens - e.config.vocab_size,
            tokens.float(),
            tokens[:, :1],
            tokens.repeat(rows + 1, 1),
            None,
        )
    ]
    wrong += [{"lengths": n} for n in ([-1] * rows, [e.segment + 1] * rows, [0.5] * rows, [1] * (rows + 1))]
    wrong += [{"streams": s} for s in ([e.streams] * rows, [-1] * rows, [0.0] * rows, [])]
    wrong += [{"weights": w} for w in ([float("nan")] * rows, [-1.0] * rows, [float("inf")] * rows, [1.0] * (rows + 1))]
    wrong += [
        {"weights": torch.full((rows, tokens.shape[1] - 1 + more), value)} for more, value in ((1, 1.0), (0, -1.0), (0, float("nan")))
    ]
    return [{**fit, **change} for change in wrong]


def check_refusals(e: Engine, twin: Engine, seed: int) -> None:
    fit = good(e, seed)
    before = state_of(e)
    for arguments in bad(e, fit):
        with pytest.raises(ValueError, match=r"^(tokens|lengths|streams|weights)\b"):
            e.step(**arguments)
    for tokens in (fit["tokens"] + e.config.vocab_size, fit["tokens"].float(), fit["tokens"][:, :1], None):
        with pytest.raises(ValueError, match=r"^tokens\b"):
            e.score(tokens)
    for arguments in ({"stream": e.streams}, {"stream": -1}, {"stream": 0, "lr": -1.0}, {"stream": 0, "lr": float("nan")}):
        with pytest.raises(ValueError, match=r"^(stream|lr)\b"):
            e.enter(**arguments)
    assert_equal(before, state_of(e))
    same_step(e, twin, fit)


def same_step(e: Engine, twin: Engine, arguments: dict) -> None:
    a, b = e.step(**arguments), twin.step(**arguments)
    assert torch.equal(a.nan_to_num(-1.0), b.nan_to_num(-1.0))
    assert_equal(state_of(e), state_of(twin), but=["last"])


def check_failure(e: Engine, twin: Engine, seed: int, folder) -> None:
    """An op that raises in the middle of a step."""
    fit = {**good(e, seed), "lengths": None, "weights": None}
    e.save(folder)
    before, real, calls = state_of(e), dict(e.ops.choices), []
    rng = random.Random(seed)
    at = rng.randint(1, 60)

    def counting(choice):
        def call(*args):
            calls.append(choice.op)
            if len(calls) == at:
                raise OSError(f"{choice.op} fails")
            return choice.function(*args)

        return type(choice)(choice.op, choice.backend, call, choice.reason)

    e.ops.choices = {name: counting(choice) for name, choice in real.items()}
    try:
        e.step(**fit)
    except OSError:
        failed = True
    else:
        failed = False
    e.ops.choices = real
    if not failed:
        twin.step(**fit)
    elif e.calls.damage is None:
        assert_equal(before, state_of(e))
    else:
        with pytest.raises(RuntimeError, match="^step: a failed step"):
            e.step(**fit)
        e.restore(folder)
    for more in range(2):
        same_step(e, twin, good(e, seed + 1 + more))


def check(seed: int, folder) -> str:
    """What became of one configuration."""
    family, options = draw(random.Random(seed))
    try:
        e = Engine(MODELS[family], **options)
    except (ValueError, UnsupportedOp) as error:
        assert re.search(rf"\b({'|'.join(NAMES)})\b", str(error)), error
        return "refused"
    resolved = dict(e.ops.choices)
    twin = Engine(MODELS[family], **options)
    if e.optimizer is not None and e.optimizer.uses_statistics:
        before = state_of(e)
        with pytest.raises(RuntimeError, match="call Engine.gather_statistics"):
            e.step(**good(e, seed))
        assert_equal(before, state_of(e))
        for each in (e, twin):
            each.gather_statistics([good(each, seed)["tokens"][0]])
    quick = e.backend == "triton"  # Triton's interpreter takes its time
    for step in range(1 if quick else 4):
        same_step(e, twin, good(e, 7 * seed + step))
        if step == 1:
            for each in (e, twin):
                each.enter(0)
    check_refusals(e, twin, seed)
    if not quick:
        check_failure(e, twin, seed, folder)
    assert e.ops.choices.keys() == resolved.keys(), "an op was resolved after the engine was made"
    assert all(re.search(rf"^{name} ", e.explain(), re.MULTILINE) for name in resolved)
    return "stepped"


def run(seeds, seconds: float, folder) -> dict[str, int]:
    found, start = {"refused": 0, "stepped": 0}, time.monotonic()
    for seed in seeds:
        if time.monotonic() - start > seconds:
            break
        try:
            found[check(seed, folder / str(seed))] += 1
        except BaseException as error:
            raise AssertionError(f"seed {seed}: {draw(random.Random(seed))}: {error!r}") from error
    return found


@pytest.mark.filterwarnings("ignore:window of")
def test_a_step_completes_or_changes_nothing(tmp_path):
    found = run(range(1000), 20, tmp_path)
    assert found["stepped"] and found["refused"], found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:window of")
def test_a_step_completes_or_changes_nothing_at_length(tmp_path):
    found = run(range(1000, 100_000), 480, tmp_path)
    assert found["stepped"] >= 100 and found["refused"] >= 50, found
