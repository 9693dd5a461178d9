"""Whole adapt steps with the GPU kernels: a tiny model against the CPU engine, and on a GPU graphs, races with the host, real sizes."""

import os
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime import interpreter

from dynadapt import RMS, SGD, Adam, Engine, Full, LoRA, Muon, Overlap, RowSparse, SegmentMemory
from dynadapt.kernels import choices, lora_gradient, lora_gradient_together
from dynadapt.model import random_model, tiny_config

from .compare import DEVICE, skip_without_gpu

MODELS = {
    family: random_model(tiny_config(family), seed=0, std=0.1) for family in ("llama", "qwen3", "gpt2", "gemma2", "gemma3", "qwen3_5")
}
T = 6


def engine(backend, family="llama", **options):
    device = DEVICE if backend == "triton" else "cpu"
    return Engine(MODELS[family], **{"segment": T, "dtype": "fp32", "streams": 2, "backend": backend, "device": device, **options})


def text(streams, length=T, seed=0, family="llama"):
    return torch.randint(MODELS[family].config.vocab_size, (streams, length + 1), generator=torch.Generator().manual_seed(seed))


def follow(cpu, gpu, steps=3, family="llama", tolerance=2e-4, lengths=None):
    """Scores and weights of both engines over the same text."""
    for step in range(steps):
        tokens = text(cpu.streams, seed=step, family=family)
        wanted = lengths[step] if lengths else None
        a, b = cpu.step(tokens, wanted), gpu.step(tokens, wanted).cpu()
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
    for x, y in zip(cpu.learners, gpu.learners):
        torch.testing.assert_close(x.state.master, y.state.master.cpu(), rtol=10 * tolerance, atol=tolerance)
        assert torch.equal(x.state.step, y.state.step.cpu())
    assert cpu.last.updated == gpu.last.updated and cpu.last.skipped == gpu.last.skipped


@pytest.mark.parametrize(
    "family,options",
    [
        ("llama", {"adapt": LoRA(2), "optimizer": Adam(lr=0.01, decay=0.01), "memory": SegmentMemory(5, 2)}),
        ("llama", {"adapt": LoRA(2), "optimizer": SGD(lr=0.1, momentum=0.5, clip=0), "memory": SegmentMemory(5, 2)}),
        ("qwen3", {"adapt": LoRA(2), "recompute": True, "reset": "auto", "memory": SegmentMemory(5, 2)}),
        ("llama", {"adapt": LoRA(2, targets=["q", "v", "up", "down"], rank_pattern={"q": 3}, alpha_pattern={"v": 1}, rslora=True)}),
        ("gpt2", {"adapt": LoRA(2), "memory": Overlap(4), "guard": "exact"}),
        ("llama", {"adapt": LoRA(2, targets=["q", "head"]), "memory": SegmentMemory(5, 2), "reset": "auto"}),
        ("gpt2", {"adapt": LoRA(2, targets="head"), "memory": Overlap(4), "guard": "exact"}),
        ("gemma3", {"adapt": LoRA(2), "memory": SegmentMemory(0, 1)}),
        ("gemma2", {"adapt": LoRA(2), "memory": SegmentMemory(5, 2)}),  # a window that cuts, and soft-caps
        ("llama", {"adapt": LoRA(2, targets=["down", "head"]), "shared": True}),
        ("qwen3_5", {"adapt": LoRA(2), "memory": SegmentMemory(5, 2)}),
        ("qwen3_5", {"adapt": LoRA(2), "recompute": True, "reset": "auto"}),
        ("llama", {"adapt": LoRA(2, keep_a=True), "optimizer": Muon(lr=0.01), "reset": "auto"}),
        ("llama", {"adapt": LoRA(2, rate_pattern={"q": 0.5, "up": 0}, b_rate=4), "optimizer": SGD(lr=0.1, clip=0)}),
        ("gpt2", {"adapt": Full(["norms", "biases"]), "optimizer": SGD(lr=0.1, momentum=0.5, decay=0.01)}),
        ("llama", {"adapt": RowSparse(0.3), "optimizer": Adam(lr=1e-3), "shared": True}),
        ("llama", {"adapt": Full(targets="mlp"), "optimizer": SGD(lr=0.1, clip=0), "shared": True}),
        ("gpt2", {"adapt": Full(targets="model"), "optimizer": SGD(lr=0.1), "shared": True}),
        ("qwen3", {"adapt": Full(targets="model"), "optimizer": SGD(lr=0.1, clip=0), "shared": True, "recompute": True}),
    ],
    ids=str,
)
def test_a_tiny_models_steps_are_the_cpu_engines(family, options):
    follow(engine("cpu", family, **options), engine("triton", family, **options), steps=2, family=family)


@pytest.mark.parametrize(
    "family,options",
    [
        ("llama", {"memory": SegmentMemory(5, 2)}),
        ("gemma3", {"adapt": LoRA(2, targets="attn")}),
        ("gptneox", {}),  # both branches read one residual
        ("qwen3_5", {}),  # layers of the gated delta rule, a gate behind attention
    ],
    ids=str,
)
def test_a_layers_gradients_together_are_those_one_by_one(family, options, monkeypatch, products_of_any_tile):
    """Each reads what it would have read alone: no buffer is written in between."""
    MODELS.setdefault(family, random_model(tiny_config(family), seed=0, std=0.1))
    options = {"adapt": LoRA(2), "optimizer": SGD(lr=0.1), **options}
    launched, found = [], []
    for alone in (False, True):
        with monkeypatch.context() as patch:
            own = lora_gradient_together.launch_together
            patch.setattr(lora_gradient, "launch_together", lambda calls: (launched.append(len(calls)), own(calls)))  # noqa: B023
            if alone:
                patch.setattr(lora_gradient, "linears_fit", lambda *_: False)
            e = engine("triton", family, **options)
            found.append([e.step(text(2, seed=seed, family=family)).cpu() for seed in range(1)] + [e.learners[0].state.master.cpu()])
            groups = len({group for _, group in e.learners[0].sizes})
    assert launched and max(launched) == groups
    assert len(launched) <= MODELS[family].config.layers and all(map(torch.equal, *found))


def test_cublas_sums_in_float32_whatever_the_caller_has_switched():
    """Where torch may, it lets partial sums of a bfloat16 product round to bfloat16."""
    seen, switches = [], torch.backends.cuda.matmul

    class Watching(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function.overloadpacket.__name__ in ("mm", "addmm", "addmm_"):
                seen.append(switches.allow_bf16_reduced_precision_reduction)
            return function(*args, **(kwargs or {}))

    before = switches.allow_bf16_reduced_precision_reduction
    switches.allow_bf16_reduced_precision_reduction = True
    try:
        with choices.force("split"), Watching():
            engine("triton", adapt=LoRA(2)).step(text(2))
        assert len(seen) > 10 and not any(seen) and switches.allow_bf16_reduced_precision_reduction
    finally:
        switches.allow_bf16_reduced_precision_reduction = before


def test_no_gradient_is_kept_where_the_kernels_update():
    """The float32 gradients of all streams are never in memory."""
    e = engine("triton", adapt=LoRA(2), optimizer=SGD(lr=0.1, clip=0), reset="auto")
    e.step(text(2))
    assert e.learners[0].state.grad is None and all(e.last.updated)
    assert engine("triton", adapt=LoRA(2), optimizer=SGD(lr=0.1, clip=1)).learners[0].state.grad is not None


def test_statistics_and_fused_rows():
    options = {"adapt": RowSparse(0.3), "optimizer": RMS(lr=1e-3, clip=0), "streams": 1}
    pair = engine("cpu", **options), engine("triton", **options)
    for e in pair:
        e.gather_statistics(list(text(2, seed=9)))
    follow(*pair, steps=2)
    assert pair[1].learners[0].state.grad is None


def test_ragged_streams_rest_alone():
    options = {"adapt": LoRA(2), "memory": SegmentMemory(5, 2)}
    follow(engine("cpu", **options), engine("triton", **options), steps=2, lengths=[[6, 2], [0, 5]])


def test_ragged_streams_learn_their_own_heads():
    options = {"adapt": LoRA(2, targets=["v", "head"]), "optimizer": SGD(lr=0.1, clip=0)}
    follow(engine("cpu", **options), engine("triton", **options), steps=2, lengths=[[6, 2], [0, 5]])


@pytest.mark.parametrize("optimizer", [Adam(lr=0.01), SGD(lr=0.1, clip=0)], ids=str)
def test_a_stream_whose_score_has_jumped_goes_back_alone(optimizer):
    pair = [engine(backend, adapt=LoRA(2), optimizer=optimizer, reset="auto") for backend in ("cpu", "triton")]
    follow(*pair, steps=1)
    for e in pair:  # as if stream 1 had had an easy past
        e.driver.step.changes.table[:, 1] = torch.tensor([10, 0.1, 1e-3, 0], dtype=torch.float64)
    follow(*pair, steps=2)
    assert pair[0].updates == pair[1].updates == 5 and pair[1].skipped_updates == 0
    for e in pair:
        points = e.driver.step.changes.points()
        assert [point.count for point in points] == [3, 1] and points[1].statistic == 0


def test_float8_base_is_the_references():
    config = replace(tiny_config("llama"), hidden_size=64, heads=4, kv_heads=2, head_dim=16, ffn_size=96)
    options = {"adapt": LoRA(2), "base": "float8", "segment": T, "streams": 2, "dtype": "fp32" if DEVICE == "cpu" else "bf16"}
    model = random_model(config, seed=0, std=0.1)
    expected, ours = Engine(model, backend="reference", device="cpu", **options), Engine(model, backend="triton", device=DEVICE, **options)
    follow(expected, ours, steps=2, tolerance=2e-3 if DEVICE == "cpu" else 0.05)


@pytest.mark.skipif(DEVICE != "cpu", reason="counts calls of the interpreter; on a GPU explain() counts the graph's nodes")
@pytest.mark.parametrize("form,per_layer", [("split", 28), ("fused", 18)])
def test_launches_a_layer(form, per_layer, monkeypatch):
    """Triton launches that one more layer costs, with LoRA on all linears; beside them "split" has 8 cuBLAS products. "fused" joins the activation
    to the products before and behind it."""
    launch, launches = interpreter.GridExecutor.__call__, [0]

    def counted(self, *args, **kwargs):
        launches[0] += 1
        return launch(self, *args, **kwargs)

    counts = []
    for layers in (1, 2):
        model = random_model(tiny_config("llama", layers=layers), seed=0, std=0.1)
        e = Engine(model, adapt=LoRA(2), memory=SegmentMemory(3, 1), segment=3, dtype="fp32", backend="triton")
        with choices.force(form), monkeypatch.context() as patch:
            patch.setattr(interpreter.GridExecutor, "__call__", counted)
            e.step(text(1, 3))
        counts.append(launches[0])
        launches[0] = 0
    assert counts[1] - counts[0] == per_layer and counts[0] <= per_layer + 12


POISONS = ("fill_",) if "DYNADAPT_CHECKED_KERNELS" in os.environ else ()  # what the emulator does to scratch is no part of a step


class OwnKernels(TorchDispatchMode):
    """Names of torch's ops that launch something: all but views and new tensors."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made, name = function(*args, **(kwargs or {})), function.overloadpacket.__name__
        if not function.is_view and not name.startswith(("empty", "detach", "_unsafe_view", "lift_fresh", *POISONS)):
            self.names.append(name)
        return made


@pytest.mark.skipif(DEVICE != "cpu", reason="on a GPU explain() counts the graph's nodes")
@pytest.mark.parametrize(
    "options,decisions",
    [
        ({}, ["count_updates"]),
        ({"reset": "auto"}, ["detect_changes", "count_updates"]),
        ({"reset": "auto", "optimizer": SGD(lr=0.1, clip=0)}, ["detect_changes", "admit_updates", "count_updates"]),
        ({"adapt": RowSparse(0.3), "optimizer": SGD(lr=0.1, clip=0), "shared": True}, ["admit_updates", "count_updates"]),
        ({"adapt": None}, []),
    ],
    ids=str,
)
def test_small_kernels_of_torch_in_a_step(options, decisions, monkeypatch):
    """There are none, each of which would take as long as a launch does: what the step decides is a launch each."""
    launched = []
    noted = lambda executor, *_, **__: launched.append(executor.fn.__name__.removeprefix("dynadapt_"))  # noqa: E731
    monkeypatch.setattr(interpreter.GridExecutor, "__call__", noted)
    e = engine("triton", **{"adapt": LoRA(2), "memory": SegmentMemory(3, 1), **options})
    with choices.force("fused"):
        e.step(text(2))
    inside, run = [], e.driver.step.run
    launched.clear()

    def counted(*arguments):
        own = OwnKernels()
        with own:
            run(*arguments)
        inside.append(own.names)

    e.driver.step.run = counted
    with choices.force("fused"):
        e.step(text(2, seed=1))
    assert inside == [[]]
    assert [name for name in launched if name in ("detect_changes", "admit_updates", "count_updates")] == decisions


@pytest.mark.parametrize("options", [{}, {"adapt": RowSparse(0.3), "shared": True}], ids=str)
def test_tokens_of_the_device_are_taken_in_one_launch(options, monkeypatch):
    """What they leave in a pass's buffers is what the host's would, but for a row with an id that is none."""
    e, launched, own = engine("triton", **{"adapt": LoRA(2), **options}), [], OwnKernels()
    tokens = text(2, seed=1).to(DEVICE)
    with monkeypatch.context() as patch:
        patch.setattr(interpreter.GridExecutor, "__call__", lambda executor, *_, **__: launched.append(executor.fn.__name__))
        e.step(text(2, seed=1), [T, 2])
        (rec,) = e.static.recordings.values()
        names = ("inputs", "targets", "moving")
        expected = {name: rec.given[name].clone() for name in names}  # the host's: on a GPU what follows runs
        launched.clear()
        with own:
            e.static._take_device_tokens(rec, tokens)
    assert DEVICE != "cpu" or (own.names, launched) == ([], ["dynadapt_take_tokens"])
    for name in names[:2]:
        rec.given[name].fill_(-7)
    e.static._take_device_tokens(rec, tokens)
    expected["inputs"][1, 2:] = tokens[1, 2:-1]  # which the host leaves out
    assert all(torch.equal(rec.given[name], expected[name]) for name in names) and not rec.made["invalid"].any()
    tokens[1, T] = MODELS["llama"].config.vocab_size
    e.static._take_device_tokens(rec, tokens)
    assert rec.made["invalid"].tolist() == [0, 1] and (rec.given["targets"][T:] == -1).all()
    assert rec.given["moving"].tolist() == ([-1] if "shared" in options else [0, -1])


def test_what_the_device_found_in_its_tokens_is_gone_with_the_hosts_next(monkeypatch):
    """Tokens of the host are checked before the pass, and nothing is launched to look at them again."""
    monkeypatch.setattr(interpreter.GridExecutor, "__call__", lambda *_, **__: None)
    e = engine("triton", adapt=LoRA(2))
    e.step(text(2))
    (rec,) = e.static.recordings.values()
    rec.looked, rec.made["invalid"][0] = True, 1
    e.step(text(2))
    assert not rec.looked and not rec.made["invalid"].any()


def test_explain_names_the_kernels():
    text_ = engine("triton", adapt=LoRA(2), optimizer=SGD(clip=0)).explain()
    assert "lora_gradient_update" in text_ and "in the gradient kernels" in text_ and "never waits" in text_


# ---- with a GPU

SMALL = {"adapt": LoRA(4), "optimizer": Adam(lr=0.01), "memory": SegmentMemory(8, 2), "streams": 3}


@pytest.mark.gpu
@skip_without_gpu
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"guard": "exact"},
        {"reset": "auto"},
        {"optimizer": SGD(lr=0.1, clip=0)},
        {"adapt": RowSparse(0.3, select="fixed"), "shared": True},
    ],
    ids=str,
)
def test_nothing_in_the_step_waits_for_the_device(options):
    """torch raises at every synchronising call, in the eager run and around the replays; test_nothing_waits.py sees the host's without a GPU."""
    e = engine("triton", **{**SMALL, **options})
    drivers = [e.static, *([e.guarding.prior.driver] if "guard" in options else [])]
    tokens = [text(3, seed=s).cuda() for s in range(6)]
    e.step(tokens[0])  # compiles kernels
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for driver in drivers:
            driver.capture = False
        e.step(tokens[1])
        for driver in drivers:
            driver.capture = True
        with pytest.raises(RuntimeError, match="synchroniz"):  # the guard itself works
            tokens[0].sum().item()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    e.step(tokens[2])  # captures
    torch.cuda.set_sync_debug_mode("error")
    try:
        for t in tokens[3:]:
            e.step(t)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(rec.graph is not None for driver in drivers for rec in driver.recordings.values())


@pytest.mark.gpu
@skip_without_gpu
def test_replays_allocate_only_their_scores():
    e = engine("triton", **SMALL)
    tokens = text(3).cuda()
    for _ in range(3):
        e.step(tokens)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for _ in range(20):
        e.step(tokens)
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() - before <= 4096


@pytest.mark.gpu
@skip_without_gpu
@pytest.mark.parametrize(
    "options",
    [
        SMALL,
        {**SMALL, "every": 2},
        {**SMALL, "recompute": True},
        {**SMALL, "reset": "auto"},
        {**SMALL, "adapt": LoRA(4, targets=["q", "head"])},
        {"adapt": Full(), "shared": True, "streams": 3},
        {"adapt": RowSparse(0.3), "shared": True, "streams": 3},
        {**SMALL, "optimizer": SGD(lr=0.1, clip=0)},
        {"adapt": Full(targets="model"), "shared": True, "streams": 3},
        {"adapt": Full(targets="model"), "streams": 3, "every": 2, "accumulate": True},
    ],
    ids=str,
)
def test_a_graph_is_the_eager_step(options):
    graphs, eager = engine("triton", **options), engine("triton", **options)
    eager.static.capture = False
    for step in range(6):
        tokens, lengths = text(3, seed=step), [[6, 6, 6], [3, 0, 6]][step % 2]
        assert torch.equal(graphs.step(tokens, lengths), eager.step(tokens, lengths))
    assert torch.equal(graphs.learners[0].state.master, eager.learners[0].state.master)
    assert graphs.flops == eager.flops and "launches in one CUDA graph" in graphs.explain()


@pytest.mark.gpu
@skip_without_gpu
def test_streams_enter_and_leave_without_another_capture():
    e = engine("triton", **{**SMALL, "streams": 8})
    for step, streams in enumerate([[0, 1, 2], [5, 2, 7], [7, 0, 3], [1, 6, 4]]):
        e.step(text(3, seed=step), streams=streams)
        e.enter(streams[0])
    assert len(e.static.recordings) == 1


@pytest.mark.gpu
@skip_without_gpu
def test_ids_outside_the_vocabulary_stop_their_stream():
    e = engine("triton", **SMALL)
    tokens = text(3).cuda()
    tokens[1, 3] = 10**9
    nll = e.step(tokens)
    assert nll[1].isnan().all() and nll[[0, 2]].isfinite().all()
    with pytest.raises(ValueError, match=r"tokens of streams \[1\] hold ids outside"):
        e.last.updated


@pytest.mark.gpu
@skip_without_gpu
@pytest.mark.parametrize("dtype,tolerance", [("fp32", 2e-4), ("bf16", 0.05)])
def test_a_larger_model_against_the_cpu_engine(dtype, tolerance):
    config = replace(tiny_config("llama"), hidden_size=256, layers=4, heads=4, kv_heads=2, head_dim=64, ffn_size=512, vocab_size=5000)
    model = random_model(config, seed=0, std=0.05)
    options = {"adapt": LoRA(16), "memory": SegmentMemory(256, 4), "streams": 3, "segment": 256, "dtype": dtype}
    cpu, gpu = Engine(model, backend="cpu", device="cpu", **options), Engine(model, device="cuda", **options)
    for step in range(4):
        tokens = torch.randint(5000, (3, 257), generator=torch.Generator().manual_seed(step))
        torch.testing.assert_close(cpu.step(tokens), gpu.step(tokens).cpu(), rtol=tolerance, atol=tolerance)


@pytest.mark.gpu
@pytest.mark.model
@skip_without_gpu
def test_a_thousand_steps_on_a_real_model_follow_the_cpu_engine(smollm2_directory):
    """The loss curves of both engines over repeated real text: chaos separates single scores, not the curve."""
    import dynadapt
    from dynadapt.runs.text import BUILTINS

    model = dynadapt.load(smollm2_directory)
    ids = torch.tensor(model.tokenizer.encode(BUILTINS["python-reference"]())[: 64 * 1000 + 1])
    options = {"adapt": LoRA(8), "memory": SegmentMemory(64, 4), "segment": 64}
    engines = [Engine(model, backend="cpu", device="cpu", **options), Engine(model, device="cuda", **options)]
    curves = [torch.stack([e.step(ids[None, i * 64 : i * 64 + 65]).mean().cpu() for i in range((len(ids) - 1) // 64)]) for e in engines]
    cpu, gpu = (c.unfold(0, 50, 50).mean(1) for c in curves)
    assert len(cpu) >= 15 and (cpu - gpu).abs().max() < 0.03 and (cpu.mean() - gpu.mean()).abs() < 0.005
