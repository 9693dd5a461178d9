"""Stage ``icl-claims``: the claims about mixtures of function classes (benchmarks/icl.py) at the sizes of Garg et al.

Six trainings a seed, of which one stage's time holds a part: every call goes on from the checkpoints in DIR/icl-claims, and the one that
finds all of them finished measures and judges.
"""

from __future__ import annotations

MEASURING = 150.0  # seconds that must be left to begin it
TOGETHER = 6  # runs at a time


def claims(campaign, record) -> None:
    """Claims 13 to 16 at the sizes of Garg et al., classes of unit variance: goes on with its trainings, and judges when they are finished."""
    from benchmarks import icl
    from dynadapt.experiments.dyneval import Interrupted

    scale, prompts = ("tiny", 8) if campaign.tiny else ("garg", icl.PROMPTS)
    configs = icl.runs_of(scale, device=campaign.device, dtype="fp32" if campaign.tiny else "bf16", own=False)
    folder = campaign.out / "icl-claims"
    try:
        summaries = icl.train_all(configs, folder, minutes=max(0.0, campaign.left - 20) / 60, together=TOGETHER)
    except Interrupted as stopped:
        for name in configs:
            record.add(run=name, steps=icl.steps_of(folder / name))
        record.finish(f"out of time, {stopped}; the same command goes on")
        return
    for name, summary in summaries.items():
        record.add(run=name, steps=summary["steps"], seconds=summary["seconds"], steps_per_second=summary["steps_per_second"])
    if not campaign.tiny and campaign.left < MEASURING:
        record.finish("trained; out of time for the measures, the same command takes them")
        return
    results = icl.results_of(configs, folder, prompts)
    icl.write_results(folder, results)
    for claim, found in results["claims"].items():
        record.add(claim=claim, verdict=found["verdict"], why=found["sentence"])
