"""Providers of the stage ``step``, one after the other: ``python -m benchmarks.gpu.step_worker``, a line ``OPTIONS.json OUT.json`` each.

Makes the step, holds its first scores against the truth (transformers + peft in float32, or plain torch where these do not run), and only
then times it. One process does many, because starting one takes ten seconds. OUT.done is there when one has ended, with why if not well.
"""

from __future__ import annotations

import gc
import json
import sys
import time
import traceback
from collections import defaultdict
from pathlib import Path

import torch

from .campaign import LOST, write_json
from .geometry import MODELS, RANK, random_weights
from .timing import spread

CHECKED = 4  # steps whose scores are compared; the later ones depend on gradients, update and memory
LR, ALPHA = 2e-3, 32.0
FITS = 0.94  # of a GPU's memory; the rest is the driver's, the libraries' and lost between tensors
SLACK = {"dynadapt": (2, 1e-3), "dynadapt-dependent": (2, 1e-3), "dynadapt-float8": (10, 0.1)}


def prior_learner(config):
    """The adapters as dynadapt starts them: every provider starts from these."""
    from dynadapt import Adam, LoRA
    from dynadapt.adapt.targets import adapted_parts
    from dynadapt.engine.decoder import group_sizes
    from dynadapt.engine.learners.lora import LoraLearner

    adapt = LoRA(RANK, ALPHA)
    return LoraLearner(adapt, Adam(lr=LR), group_sizes(config), adapted_parts(adapt, config), 1, torch.float32, 0)


def segments(config, streams, segment, device, count: int = 2):
    """Token blocks [S, T+1] from few ids, so that there is something to learn; stream s has the same tokens whatever S is."""
    blocks = []
    for block in range(count):
        rows = []
        for s in range(streams):
            generator = torch.Generator().manual_seed(1000 * block + s)
            rows.append(torch.randint(min(512, config.vocab_size), (segment + 1,), generator=generator))
        blocks.append(torch.stack(rows).to(device))
    return blocks


def batch_that_fits(model: str, streams: int, segment: int, memory: float) -> int | None:
    """How many streams run together so that the step, as the plan counts what it holds, takes FITS of ``memory`` bytes at most:
    None for all of them, else their number halved until it fits, or 1."""
    from dynadapt import Adam, LoRA, SegmentMemory
    from dynadapt.bench.plan.work import step_work

    batch = streams
    while batch > 1:
        work = step_work(
            MODELS[model], LoRA(RANK, ALPHA), Adam(lr=LR), SegmentMemory(segment, 0), streams, segment, batch=batch, memory_only=True
        )
        if work.bytes_held <= FITS * memory:
            break
        batch //= 2
    return None if batch == streams else batch


def _memory(device: str) -> float:
    return torch.cuda.get_device_properties(device).total_memory if device == "cuda" else float("inf")


class Dynadapt:
    def __init__(self, o, dtype, **options):
        from dynadapt import Adam, Engine, LoRA, SegmentMemory

        name = {torch.bfloat16: "bf16", torch.float32: "fp32"}[dtype]
        self.engine = Engine(
            random_weights(o["model"], o["device"], dtype),
            adapt=LoRA(rank=RANK, alpha=ALPHA),
            optimizer=Adam(lr=LR),
            memory=SegmentMemory(length=o["segment"], sinks=0),
            streams=o["streams"],
            segment=o["segment"],
            dtype=name,
            device=o["device"],
            batch=batch_that_fits(o["model"], o["streams"], o["segment"], _memory(o["device"])),
            **options,
        )

    def step(self, tokens):
        return self.engine.step(tokens)

    def facts(self) -> dict:
        return {"explain": self.engine.explain(), "batch": self.engine.batch}


class StackedPeer:
    def __init__(self, o, dtype, compiled: bool = True, **mode):
        from .stacked import Stacked

        model, compiled = random_weights(o["model"], o["device"], dtype), compiled and o["device"] == "cuda"
        self.step = Stacked(model, prior_learner(model.config), o["streams"], o["segment"], dtype, o["device"], compiled, LR, **mode).step

    def facts(self) -> dict:
        return {}


class Peft:
    """transformers + peft, one stream after the other, as users do it today. All streams share the modules; a stream's adapter
    tensors, optimizer state and cached keys and values are put in place when its turn comes (pointers, not copies)."""

    def __init__(self, o, dtype, liger: bool = False, wide_adapters: bool = False):
        import peft
        import transformers

        if liger:  # rotary, norm and SwiGLU kernels; the loss stays torch's, because every token's score is needed
            from liger_kernel.transformers import apply_liger_kernel_to_llama

            apply_liger_kernel_to_llama(rope=True, rms_norm=True, swiglu=True, cross_entropy=False, fused_linear_cross_entropy=False)
        transformers.logging.set_verbosity_error()
        self.o, self.dtype, self.T = o, dtype, o["segment"]
        base = _transformers(random_weights(o["model"], o["device"], dtype), dtype, o["device"])
        targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        settings = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets, task_type="CAUSAL_LM")
        self.live = peft.get_peft_model(base, settings, autocast_adapter_dtype=wide_adapters)
        self.parameters = self._start(prior_learner(MODELS[o["model"]]))
        self.data = [[p.detach().clone() for p in self.parameters] for _ in range(o["streams"])]
        self.optimizer = torch.optim.Adam(self.parameters, lr=LR, fused=True)
        self.state, self.cache = [defaultdict(dict) for _ in self.data], [None for _ in self.data]
        self.position = 0

    def _start(self, learner) -> list:
        """Adapter tensors in peft's modules set to dynadapt's initial ones."""
        from dynadapt.engine.learners.peft import adapted_modules
        from dynadapt.model.peft import tensor_key

        named = {n.replace(".default", ""): p for n, p in self.live.named_parameters() if p.requires_grad}
        for adapted in adapted_modules(learner, MODELS[self.o["model"]]):
            a, b = (learner.layout.view(learner.state.prior, f"{adapted.layer}.{adapted.group}.{name}") for name in ("A", "Bt"))
            a, b = adapted.halves(a, b)
            with torch.no_grad():
                named[tensor_key(adapted.module, "A")].copy_(a)
                named[tensor_key(adapted.module, "B")].copy_(b.t())
        return list(named.values())

    def step(self, tokens):
        scores = [self._stream(s, row[None]) for s, row in enumerate(tokens)]
        self.position += self.T
        return torch.cat(scores)

    def _stream(self, s, row):
        from transformers import DynamicCache

        for p, data in zip(self.parameters, self.data[s]):
            p.data = data
        self.optimizer.state = self.state[s]
        cache = DynamicCache()
        for layer, (k, v) in enumerate(self.cache[s] or ()):
            cache.update(k, v, layer)
        positions = torch.arange(self.position, self.position + self.T, device=row.device)[None]
        logits = self.live(input_ids=row[:, :-1], past_key_values=cache, position_ids=positions, use_cache=True).logits[0]
        nll = torch.nn.functional.cross_entropy(logits.float(), row[0, 1:], reduction="none")
        nll.mean().backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.cache[s] = [tuple(t[:, :, -self.T :].detach() for t in (layer.keys, layer.values)) for layer in cache.layers]
        return nll.detach()[None]

    def facts(self) -> dict:
        return {}


def _transformers(model, dtype, device):
    """The transformers model of the same config and weights."""
    import transformers

    from dynadapt.model import hf_name
    from dynadapt.model.hf_config import config_to_hf

    raw = config_to_hf(model.config)
    raw.pop("architectures")
    config = transformers.CONFIG_MAPPING[raw.pop("model_type")](**raw)
    with torch.device(device):
        live = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    state = {hf_name(model.config, name): model.tensor(name) for name in model.names()}
    missing, unexpected = live.load_state_dict(state, strict=False)
    if unexpected or not set(missing) <= ({"lm_head.weight"} if model.config.tied_head else set()):
        raise RuntimeError(f"transformers' model has other tensors: missing {missing}, unexpected {unexpected}")
    live.tie_weights()
    return live.to(device)


PROVIDERS = {
    "dynadapt-float8": lambda o, dtype: Dynadapt(o, dtype, base="float8", backend="auto" if o["device"] == "cuda" else "reference"),
    "dynadapt": Dynadapt,
    "dynadapt-dependent": Dynadapt,  # in a process whose environment asks for dependent launches
    "stacked-graph": lambda o, dtype: StackedPeer(o, dtype, mode=None),
    "stacked-compile": StackedPeer,
    "peft-eager": Peft,
    "peft-liger": lambda o, dtype: Peft(o, dtype, liger=True),
}


def scores(provider, tokens) -> torch.Tensor:
    """NLL [CHECKED, T] of the first stream; the same block again and again, so that what was learned shows."""
    return torch.stack([provider.step(tokens)[0].float().cpu() for _ in range(CHECKED)])


# What makes the truth: the first that runs here.
TRUTHS = {
    "transformers + peft": lambda o, dtype: Peft(o, dtype, wide_adapters=True),
    "plain torch (stacked.py, eager)": lambda o, dtype: StackedPeer(o, dtype, compiled=False),
}


def truth(o) -> dict:
    """The first stream's scores in float32, and how far the same code in the working precision is from them.

    Without it nothing of a segment is timed: where a package is absent, or of a version that works otherwise, the next of TRUTHS makes it.
    """
    alone, failed = {**o, "streams": 1}, {}
    block = segments(MODELS[o["model"]], 1, o["segment"], o["device"])[0]
    for by, make in TRUTHS.items():
        try:
            exact = scores(make(alone, torch.float32), block)
            _empty_cache(o)
            rough = scores(make(alone, _dtype(o)), block)
        except Exception as error:
            failed[by] = f"{type(error).__name__}: {str(error)[:300]}"
            _empty_cache(o)
        else:
            return {"nll": exact.tolist(), "error": _error(rough, exact), "by": by, "instead_of": failed}
    raise RuntimeError("; ".join(f"{by}: {why}" for by, why in failed.items()))


def _empty_cache(o) -> None:
    gc.collect()  # modules hold each other
    if o["device"] == "cuda":
        torch.cuda.empty_cache()


def _dtype(o):
    return torch.float32 if o["device"] == "cpu" else torch.bfloat16


def _error(a, b) -> float:
    return float((a - b).square().mean().sqrt())


def measure(o, save) -> None:
    began = time.perf_counter()
    if o["device"] == "cuda":
        torch.cuda.init()  # without which there are no statistics to begin anew
        torch.cuda.reset_peak_memory_stats()
    blocks = segments(MODELS[o["model"]], o["streams"], o["segment"], o["device"])
    provider = PROVIDERS[o["provider"]](o, _dtype(o))
    sync = torch.cuda.synchronize if o["device"] == "cuda" else lambda: None
    first = provider.step(blocks[0])[0].float().cpu()
    save(first_step_seconds=time.perf_counter() - began)
    found = torch.stack([first, *(provider.step(blocks[0])[0].float().cpu() for _ in range(CHECKED - 1))])
    expected = json.loads(Path(o["truth"]).read_text())
    # in units of how far off the truth's own code is in bf16; float8 is another model, and only kept sane
    slack, more = SLACK.get(o["provider"], (4, 1e-3))
    error, bound = _error(found, torch.tensor(expected["nll"])), slack * expected["error"] + more
    save(nll_by_step=found.mean(1).tolist(), nll_error=error, nll_bound=bound, truth=expected.get("by"))
    if not error <= bound:
        text = f"scores of the first {CHECKED} steps are off by {error:.3g}, at most {bound:.3g} is allowed"
        raise AssertionError(f"{o['provider']}: {text}; not timed")
    start = time.perf_counter()
    for block in blocks:
        provider.step(block)
    sync()
    each = (time.perf_counter() - start) / len(blocks)
    count = int(min(100, max(3, o["seconds"] / each)))
    save(**_time(provider, blocks, count, o["device"], sync))
    if o["device"] == "cuda":
        free, total = torch.cuda.mem_get_info()
        save(peak_memory_bytes=torch.cuda.max_memory_allocated(), device_memory_bytes=total - free)
        save(**launches(provider, blocks[0]))
    save(**provider.facts())


def _time(provider, blocks, count, device, sync) -> dict:
    """Milliseconds of each step (device events, or the clock), and of all of them by the clock."""
    marks = []
    start = time.perf_counter()
    for i in range(count + 1):
        if device == "cuda":
            marks.append(torch.cuda.Event(enable_timing=True))
            marks[-1].record()
        else:
            marks.append(time.perf_counter())
        if i < count:
            provider.step(blocks[i % len(blocks)])
    sync()
    wall = time.perf_counter() - start
    gap = (lambda a, b: a.elapsed_time(b)) if device == "cuda" else (lambda a, b: 1e3 * (b - a))
    return {**spread([gap(a, b) for a, b in zip(marks, marks[1:])]), "wall_ms": 1e3 * wall / count}


def launches(provider, block) -> dict:
    """Kernels of one step and the longest of them, from torch's profiler."""
    from torch.profiler import ProfilerActivity, profile

    try:
        with profile(activities=[ProfilerActivity.CUDA]) as found:
            provider.step(block)
            torch.cuda.synchronize()
        kernels = [e for e in found.key_averages() if getattr(e, "self_device_time_total", 0) > 0]
        top = sorted(kernels, key=lambda e: -e.self_device_time_total)[:25]
        return {
            "launches": sum(e.count for e in kernels),
            "kernel_ms": 1e-3 * sum(e.self_device_time_total for e in kernels),
            "longest": [{"kernel": e.key[:120], "count": e.count, "ms": 1e-3 * e.self_device_time_total} for e in top],
        }
    except RuntimeError as error:
        return {"launches": None, "profiler": str(error)[:200]}


def main(options: str, out: str) -> None:
    o, found = json.loads(Path(options).read_text()), {}

    def save(**more):
        found.update(more)
        write_json(Path(out), found)

    if o["provider"] == "truth":
        save(**truth(o))
    elif o.get("warm"):
        warm(o)
    else:
        measure(o, save)


def warm(o) -> None:
    """Steps of a provider that are timed by nobody: what they compile is there for the process that times them."""
    block = segments(MODELS[o["model"]], o["streams"], o["segment"], o["device"])[0]
    scores(PROVIDERS[o["provider"]](o, _dtype(o)), block)


def serve(lines) -> None:
    for line in lines:
        options, out = line.rstrip("\n").split("\t")
        ended = ""
        try:
            main(options, out)
        except Exception as error:
            traceback.print_exc()
            ended = f"{type(error).__name__}: {error}"
        Path(out).with_suffix(".done").write_text(ended)
        if any(text in ended for text in LOST):
            sys.exit(70)  # no later call of this process to the GPU would succeed
        try:
            _forget(json.loads(Path(options).read_text()))
        except Exception:
            sys.exit(71)


def _forget(o) -> None:
    """Nothing of what was measured stays on the card, nor in the compiler's caches of this process."""
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
    _empty_cache(o)


if __name__ == "__main__":
    serve(sys.stdin)
