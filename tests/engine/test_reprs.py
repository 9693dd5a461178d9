"""What objects say of themselves: short, no tensor's values, and never an error, be they closed, damaged or half made."""

import copy

import pytest
import torch
from helpers import to_transformers
from tiny import tiny_tokenizer

import dynadapt
from dynadapt import Engine, Full, LoRA, Overlap, RowSparse, SegmentMemory
from dynadapt.adapt.optimizers import OPTIMIZERS
from dynadapt.engine import StepReport
from dynadapt.engine.continuation import Continuation
from dynadapt.engine.memory import MemoryState
from dynadapt.engine.sampling import Sampler
from dynadapt.experiments.evaluation import Evaluation
from dynadapt.interop.session import Session, Snapshot
from dynadapt.model import Model, Tokenizer, random_model, tiny_config

MODEL = random_model(tiny_config("llama"), seed=1, std=0.1)
LIMIT = 400


def ids(rows=1):
    return torch.randint(100, (rows, 9), generator=torch.Generator().manual_seed(2))


def said(thing) -> str:
    text = repr(thing)
    assert len(text) <= LIMIT and "tensor(" not in text and "\n" not in text and " at 0x" not in text, text
    return text


def engine(**options):
    return Engine(MODEL, **{"adapt": LoRA(rank=2), "segment": 8, "dtype": "fp32", **options})


def test_an_engine_and_its_reports():
    e = engine(memory=SegmentMemory(8, 1), streams=3)
    assert said(e).startswith("Engine('random-llama', LoRA(rank=2, alpha=4.0") and "3 streams of 8, fp32, cpu on cpu, 0 updates)" in said(e)
    e.step(ids(3), [8, 0, 4])
    assert "2 updates" in said(e) and "SegmentMemory(length=8" in said(e)
    assert said(e.last).startswith("StepReport(2 of 3 streams updated, gradient norm ")
    assert "static, 1 stream" in said(engine(adapt=None))
    report = StepReport([True] * 5000, [False] * 4999 + [True], [False] * 5000, [0.5] * 5000, {"forward": 10**12})
    assert said(report) == "StepReport(5000 of 5,000 streams updated, 1 skipped, gradient norm 0.5..0.5, 1000 GFLOP)"


def test_a_static_step_is_not_waited_for():
    e = engine(static=True)
    e.step(ids())
    assert "not read from the device" in said(e.last) and e.last.known is None and "updates" not in said(e)
    assert e.last.updated == [True] and "1 of 1 stream updated" in said(e.last)


def test_a_damaged_engine_says_so():
    e = engine()
    with pytest.raises(OSError), e.calls.call("step"):
        e.calls.moving()
        raise OSError("power")
    assert "DAMAGED by a failed call" in said(e)


def test_an_engine_in_a_call_can_be_shown():
    e = engine()
    with e.calls.call("step"):
        said(e)


def test_sessions_open_and_closed():
    with dynadapt.attach(to_transformers(MODEL), adapt=LoRA(rank=2), segment=8) as session:
        session.step(ids())
        assert said(session).startswith("Session(LlamaForCausalLM, shows stream 0, 1 steps kept, Engine(")
        assert said(session.snapshot()).startswith("Snapshot(") and " MB)" in said(session.snapshot())
    assert "detached" in said(session)


def test_tokenizers_models_and_settings():
    assert said(Tokenizer(tiny_tokenizer(), bos_id=0, eos_id=1)) == "Tokenizer(BPE, 300 ids, bos 0, eos 1)"
    assert said(MODEL) == "Model('random-llama', family llama, 3 layers, hidden 60, vocabulary 131)"
    for settings in (
        LoRA(),
        RowSparse(),
        Full(),
        *(kind() for kind in OPTIMIZERS.values()),
        SegmentMemory(),
        Overlap(),
        Sampler(),
        LoRA(layers=range(3, 9)),
    ):
        assert eval(said(settings), vars(dynadapt.adapt) | globals()) == settings
    assert (
        said(Continuation("the " * 100, [1] * 100, [2] * 5000))
        == f"Continuation({('the ' * 100)[:57] + '...'!r}, 100 tokens, ended='length')"
    )
    assert said(Continuation(None, [1], [2])) == str(Continuation(None, [1], [2])) == "Continuation(None, 1 token, ended='length')"


KINDS = [
    Engine,
    Session,
    Snapshot,
    Tokenizer,
    Model,
    StepReport,
    Evaluation,
    Continuation,
    LoRA,
    RowSparse,
    Full,
    *OPTIMIZERS.values(),
    SegmentMemory,
    Overlap,
    Sampler,
    MemoryState,
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_half_made_object_can_be_shown(kind):
    """As a debugger or a traceback shows an object whose constructor failed."""
    assert kind.__name__ in repr(object.__new__(kind))


def test_any_part_of_an_engine_may_be_missing():
    for thing in (engine(), dynadapt.attach(to_transformers(MODEL), adapt=LoRA(rank=2), segment=8)):
        for name in list(vars(thing)):
            broken = copy.copy(thing)
            delattr(broken, name)
            assert type(thing).__name__ in repr(broken)
            setattr(broken, name, None)
            assert type(thing).__name__ in repr(broken)
