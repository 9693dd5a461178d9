"""What an engine does and what it costs: implementations, FLOPs, and with ``time`` the seconds of each op."""

from __future__ import annotations

import time as clock

import torch


STEP_OPS = ("embedding_forward", "norm_forward", "norm_backward", "linear_forward", "linear_backward", "lora_gradient",
            "weight_gradient", "row_scores", "head_norm_forward", "head_norm_backward", "attention_forward",
            "attention_backward", "activation_forward", "activation_backward", "cross_entropy", "update")


def _used(engine):
    """Names of the ops that this configuration's step calls."""
    skip = set()
    if engine.weights.table is None:
        skip.add("embedding_forward")
    if not engine.config.qk_norm:
        skip |= {"head_norm_forward", "head_norm_backward"}
    if not engine.learners:
        skip |= {"norm_backward", "linear_backward", "head_norm_backward", "attention_backward", "activation_backward", "update"}
    lora = bool(engine.learners) and not engine.learners[0].owns_weights
    if not lora:
        skip.add("lora_gradient")
    if not engine.learners or lora:
        skip.add("weight_gradient")
    if getattr(engine.adapt, "select", None) != "gradient":
        skip.add("row_scores")
    return [name for name in STEP_OPS if name not in skip]




def timed_steps(engine, steps: int = 3) -> tuple[float, dict[str, float], dict[str, int]]:
    """(seconds a step, seconds by op, FLOPs of a step) over ``steps`` steps of random tokens on a fresh twin of the engine."""
    from .engine import Engine

    twin = Engine(engine.model, engine.adapt, engine.optimizer, engine.memory, engine.streams, engine.segment, engine.shared,
                  1, False, "never", engine.dtype, engine.backend, engine.seed)
    generator = torch.Generator().manual_seed(0)
    tokens = lambda: torch.randint(engine.config.vocab_size, (engine.streams, engine.segment + 1), generator=generator)  # noqa: E731
    if engine.optimizer is not None and engine.optimizer.uses_statistics:
        twin.gather_statistics(tokens()[:1])
    twin.step(tokens())
    twin.step(tokens())
    twin.ops.seconds = {}
    start = clock.perf_counter()
    for _ in range(steps):
        twin.step(tokens())
    total = (clock.perf_counter() - start) / steps
    return total, {name: s / steps for name, s in twin.ops.seconds.items()}, twin.last.flops


def explain(engine, time: bool = False) -> str:
    c = engine.config
    lines = [f"{engine.model.name}: {c.family}, {c.layers} layers, hidden {c.hidden_size}, vocabulary {c.vocab_size}",
             f"learns: {engine.adapt or 'nothing (static)'}"]
    if engine.learners:
        where = f"{engine.learned_parameters:,} parameters per {'model' if engine.shared else 'stream'}; backward stops at layer {engine.lowest[0]}, {engine.lowest[1]}"
        lines += [f"        {where}", f"with:   {engine.optimizer}; update every {engine.every} segment(s); reset {engine.reset_policy}"]
    lines += [f"remembers: {engine.memory or 'nothing'}",
              f"streams {engine.streams} x segment {engine.segment}, {engine.dtype}, backend {engine.backend}", "", "op                    implementation"]
    for name in _used(engine):
        getattr(engine.ops, name)
        choice = engine.ops.choices[name]
        lines.append(f"{name:<21} {choice.backend}: {choice.reason}")
    if time:
        lines += ["", *_time_table(engine)]
    return "\n".join(lines)


def _time_table(engine) -> list[str]:
    total, seconds, flops = timed_steps(engine)
    work = sum(n for phase, n in flops.items() if phase != "update")
    tokens = engine.streams * engine.segment
    rows = [f"one step: {1e3 * total:.1f} ms, {tokens / total:,.0f} tokens/s, {work / total / 1e9:,.0f} GFLOP/s "
            f"({work / 1e9:.1f} GFLOP: " + ", ".join(f"{phase} {n / 1e9:.1f}" for phase, n in flops.items()) + ")"]
    for name, s in sorted(seconds.items(), key=lambda item: -item[1]):
        rows.append(f"{name:<28} {1e3 * s:8.2f} ms  {100 * s / total:5.1f} %")
    rest = total - sum(seconds.values())
    rows.append(f"{'outside the ops':<28} {1e3 * rest:8.2f} ms  {100 * rest / total:5.1f} %")
    return rows
