"""What an engine does and what it costs: implementations, FLOPs, and with ``time`` the seconds of each op."""

from __future__ import annotations

import time as clock

import torch

from dynadapt.ops.dispatch import native_module

from .arithmetic import why
from .each_stream import said
from .footprint import footprint_line
from .needed_ops import needed_ops
from .settings import NEVER


def _delta_lines(engine) -> list[str]:
    """What becomes of the state of layers of the gated delta rule."""
    c = engine.config
    if c.delta is None:
        return []
    carried = engine.decoder.memory is not None
    size = c.delta.value_heads * c.delta.key_dim * c.delta.value_dim
    what = "carried on from segment to segment, detached" if carried else "zero where a segment begins"
    return [f"        {len(c.delta_layers)} of {c.layers} layers have the gated delta rule: a state of {size:,} numbers each, {what}"]


def _how_it_runs(engine) -> list[str]:
    """Graph or host, fused update or not, launches a step."""
    static = engine.static
    if static is None:
        return [f"the step runs op by op; rows that do the same work go together, at most {engine.batch}"]
    lines = [
        "the step has fixed shapes and never waits for the device"
        + (f"; {len(static.recordings)} kind(s) of step recorded" if static.cuda else "; op by op, since there is no GPU to capture it on")
    ]
    for kind, rec in static.recordings.items():
        if rec.graph is not None:
            work = "score, learn, update" if kind.update else "score, learn" if kind.backward else "score"
            lines.append(f"        {kind.rows} x {kind.scored // kind.rows}, {work}: {rec.launches:,} launches in one CUDA graph")
    if static.cuda and not any(rec.graph for rec in static.recordings.values()):
        lines.append("        launches: known after the second step, which is captured")
    if engine.batch < engine.streams:
        lines.append(f"        {engine.batch} streams go through the layers together, the others after them")
    if engine.learners:
        lines.append(
            "        update: "
            + (
                "in the gradient kernels; of optim_step a launch of its own"
                if static.step.fused
                else f"a launch of its own, because {static.step.why_not_fused}"
            )
        )
    return lines


def _guard_lines(guarding) -> list[str]:
    """What is mixed into one score."""
    lines, share = [], f"mixed by fixed share {guarding.mixture.share:g}"
    if guarding.learners > 1:
        lines.append(f"rates:  {guarding.learners} streams are learners of one text, {share}")
    if guarding.looks is not None:
        every = guarding.looks.every
        when = "on every segment" if every == 1 else f"on every {every}th segment, and on all while it leads"
        lines.append(f"guard:  the model as it was is scored {when}, {share}")
    return lines


def _moving_rates(engine) -> str:
    """Between which factors the rates of all adapters are by now."""
    factors = torch.cat([learner.state.log_rate.flatten() for learner in engine.learners]).double().exp()
    each = engine.learners[0].state.log_rate.shape[1]
    return f"rates:  {engine.hypergradient!r}, a factor for each of {each} tensors a stream, now {factors.min():.3g} to {factors.max():.3g}"


def _slow_line(engine) -> str:
    """What all streams learn together."""
    slow, learned = engine.slow, engine.slow_level.learner.learned_parameters
    return (
        f"slow:   {said(slow.adapt)}, {learned:,} parameters of all streams, with {said(slow.optimizer)}; update every {slow.every:,} tokens, "
        f"run again in windows of {engine.slow_level.learner.segment:,}"
    )


def _keep_line(keeping) -> str:
    """What an update pulls towards beside the loss."""
    given = keeping.given
    return (
        f"keeps:  the model as it was, {given.weight:g} x KL on {given.tokens} of {keeping.inputs.numel():,} reference tokens an update; "
        f"forward and backward of these {given.tokens} in each"
    )


def _base(engine) -> list[str]:
    """What frozen weights are kept in, where that is not the arithmetic's dtype."""
    weights = engine.weights
    if engine.base == "same":
        return []
    if engine.base == "quants":
        kept = ", ".join(f"{count} x {name}" for name, count in sorted(weights.kept.items(), key=lambda item: -item[1]))
        rounded = ", expanded and rounded where a product reads them" if engine.dtype == "bf16" else ", expanded where a product reads them"
        return [f"frozen weights as the file has them: {kept}{rounded}; scores are those of base='same' to the bit"]
    held = [part for parts in weights.parts.values() if parts is not None for part in (parts if isinstance(parts, list) else [parts])]
    of = "linear weights"
    if engine.base == "int8":
        held, of = [*held, weights.head], "linear weights and head"
    size, count = sum(m.nbytes for m in held), sum(m.shape[0] * m.shape[1] for m in held)
    line = f"base {engine.base}: {size / 1e6:,.1f} MB for the {count:,} {of}, {size / (2 * count):.0%} of bf16"
    if engine.base == "int8" and engine.backend == "cpu":
        line += f"; products of whole numbers {'by VNNI' if native_module().vnni() else 'in int16, without VNNI'}"
    return [line]


def timed_steps(engine, steps: int = 3):
    """(a fresh twin of the engine, seconds a step, seconds by op) over ``steps`` steps of random tokens on the twin."""
    plain = {"every": 1, "reset": "never", "slow": None, "learn_from": None}
    twin = type(engine)(engine.model, **{**engine.settings.arguments(), **plain})
    generator = torch.Generator().manual_seed(0)
    tokens = lambda: torch.randint(engine.config.vocab_size, (engine.streams, engine.segment + 1), generator=generator)  # noqa: E731
    if twin.learners and twin.learners[0].state.lacks_statistics:
        twin.gather_statistics(list(tokens()[:1]))
    if twin.static:
        for driver in (twin.static, *([twin.guarding.prior.driver] if twin.guarding else [])):
            driver.capture = False  # ops one by one, each waited for: their sum is more than a graph takes
    twin.step(tokens())
    twin.step(tokens())
    twin.ops.seconds = {}
    start = clock.perf_counter()
    for _ in range(steps):
        twin.step(tokens())
    total = (clock.perf_counter() - start) / steps
    return twin, total, {name: s / steps for name, s in twin.ops.seconds.items()}


def _lowest(engine) -> str:
    layer, group = engine.lowest
    return "stops at the head" if layer == engine.config.layers else f"stops at layer {layer}, {group}"


def _ways(engine) -> list[str]:
    """What streams that differ cost, and whose matrices move as wholes."""
    lines, ways = [], engine.settings.ways
    if engine.driver.step.mixed is not None:
        counted = (
            "FLOPs count every stream as the widest, for which shapes are fixed" if engine.settings.fixed else "each costs its own ranks"
        )
        each = ", ".join(f"{learner.learned_parameters:,}" for learner in engine.learners)
        lines.append(f"        {len(ways)} ways to learn in one step, of {each} parameters a stream; an update for each way; {counted}")
    for way, learner in zip(ways, engine.learners):
        if way.optimizer.rule().arithmetic.prepared:
            parts = learner.layout.parts
            lines.append(f"        {len(parts.matrices)} matrices of {len(parts.by_shape)} shapes a stream are turned by torch's products")
    return lines


def explain(engine, time: bool = False) -> str:
    c = engine.config
    lines = [
        f"{engine.model.name}: {c.family}, {c.layers} layers, hidden {c.hidden_size}, vocabulary {c.vocab_size}",
        f"learns: {said(engine.adapt) if engine.learners else 'nothing (static)'}",
    ]
    if engine.learners:
        depth = "goes down to the embedding" if engine.lowest[0] < 0 else _lowest(engine)
        mean = " by the mean of their gradients" if engine.accumulate and 1 < engine.every < NEVER else ""
        where = f"{engine.learned_parameters:,} parameters per {'model' if engine.shared else 'stream'}; backward {depth}"
        lines += [
            f"        {where}",
            f"with:   {said(engine.optimizer)}; update every {engine.every} segment(s){mean}; reset {engine.reset_policy}",
        ]
        lines += _ways(engine)
    if engine.hypergradient is not None:
        lines.append(_moving_rates(engine))
    if engine.learn_from is not None:
        lines.append(f"from:   {engine.learn_from!r}; a segment that is left out costs its score and the head's gradient")
    if engine.guarding is not None:
        lines += _guard_lines(engine.guarding)
    if engine.slow is not None:
        lines.append(_slow_line(engine))
    if engine.keeping is not None:
        lines.append(_keep_line(engine.keeping))
    reason = why(engine.dtype, engine.device, engine.backend)
    lines += [
        f"remembers: {engine.memory or 'nothing'}",
        *_delta_lines(engine),
        f"streams {engine.streams} x segment {engine.segment}, {engine.dtype}{f' ({reason})' if reason else ''}, backend {engine.backend} on {engine.device}",
        *_base(engine),
        *_how_it_runs(engine),
        "",
        "op                    implementation",
    ]
    for name in needed_ops(engine, engine.static is not None, engine.driver.step.fused):
        choice = engine.ops.choices[name]
        lines.append(f"{name:<21} {choice.backend}: {choice.reason}")
    lines += ["", *_time_table(engine)] if time else ["", footprint_line(engine)]
    return "\n".join(lines)


def _time_table(engine) -> list[str]:
    twin, total, seconds = timed_steps(engine)
    flops = twin.last.flops
    work = sum(n for phase, n in flops.items() if phase != "update")
    tokens = engine.streams * engine.segment
    rows = [
        f"one step: {1e3 * total:.1f} ms, {tokens / total:,.0f} tokens/s, {work / total / 1e9:,.0f} GFLOP/s "
        f"({work / 1e9:.1f} GFLOP: " + ", ".join(f"{phase} {n / 1e9:.1f}" for phase, n in flops.items()) + ")",
        footprint_line(twin),
    ]
    for name, s in sorted(seconds.items(), key=lambda item: -item[1]):
        rows.append(f"{name:<28} {1e3 * s:8.2f} ms  {100 * s / total:5.1f} %")
    rest = total - sum(seconds.values())
    rows.append(f"{'outside the ops':<28} {1e3 * rest:8.2f} ms  {100 * rest / total:5.1f} %")
    return rows
