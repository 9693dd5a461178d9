"""What training in context, reweighting and tuning show of themselves: their last line, and the speed of a resumed run."""

import io

from dynadapt.experiments.icl.progress import Training
from dynadapt.experiments.reweight.progress import Reweighting
from dynadapt.experiments.tune.progress import Stages
from dynadapt.runs.progress import Bar, Lines


def shown(status, events, every=3600.0) -> tuple[list[str], str]:
    """(lines of a pipe, what a bar leaves)."""
    pipe, terminal = io.StringIO(), io.StringIO()
    with Lines(pipe, every, status()) as lines:
        for event in events:
            lines(event)
    with Bar(terminal, status()) as bar:
        for event in events:
            bar(event)
    return pipe.getvalue().splitlines(), terminal.getvalue()


def test_training_in_context_counts_its_own_steps():
    """Resumed at step 1,000 after 60 s: 1,000 steps in 10 s are its speed, whatever came before."""
    event = {"error": 0.5, "by_k": [1.0, 0.25], "dims": 3, "points": 5}
    events = [{**event, "step": step, "total_seconds": 60 + (step - 1000) / 100} for step in (1000, 1500, 2000)]
    lines, bar = shown(lambda: Training(3000), events)
    assert lines == [
        "step 1,000/3,000  left -  error 0.5000  last point 0.2500  3 dims 5 points",
        "step 2,000/3,000  left 0:10  error 0.5000  last point 0.2500  3 dims 5 points  100.0 steps/s",
    ]
    assert "2,000" in bar and "error 0.5000" in bar


def test_an_evaluation_does_not_wait_and_notes_are_said_once():
    event = {"weights": {"a": 0.25, "b": 0.75}, "notes": [], "seconds": 1.0}
    step = {**event, "kind": "step", "loss": 3.0, "losses": {"a": 2.5}, "tokens": 512}
    heldout = {"heldout": {"a": 2.0}, "change": {"a": -0.5}, "velocity": {"a": 1.0}}
    events = [
        {**step, "step": 1, "total_tokens": 512, "total_seconds": 1.0, "notes": ["a is short"]},
        {**step, "step": 2, "total_tokens": 1024, "total_seconds": 2.0},
        {**event, **heldout, "kind": "evaluation", "step": 2, "total_tokens": 1024, "total_seconds": 4.0},
    ]
    lines, _ = shown(lambda: Reweighting(4), events)
    assert lines == [
        "step 1/4  512 tokens  loss 3.0000  512 tokens/s  left 0:03  |  a 0.250 loss 2.5000 held-out - (-)  |  b 0.750 loss - held-out - (-)",
        "  a is short",
        "step 2/4  1,024 tokens  loss 3.0000  256 tokens/s  left 0:04  |  a 0.250 loss 2.5000 held-out 2.0000 (-0.5000) V 1.000"
        "  |  b 0.750 loss - held-out - (-) V -",
    ]


def test_tuning_says_each_stage_once():
    events = [
        {"stage": "starting", "seconds": 0.0, "fraction": 0.0, "new": True},
        {"stage": "starting", "seconds": 30.0, "fraction": 0.1, "new": False},
        {"stage": "screening", "seconds": 60.0, "fraction": 0.2, "new": True},
        {"stage": "screening", "seconds": 90.0, "fraction": 0.3, "new": False},
    ]
    lines, terminal = shown(lambda: Stages(5), events, every=0.0)
    assert lines == ["0:00 of 5:00  starting", "1:00 of 5:00  screening"] and not terminal.strip()  # the bar goes when it is done
