"""Runs the demo: times a segment, plans, fills the table, draws, and ends with a page that shows where in the text it gained."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from pathlib import Path

from rich.console import Console

from dynadapt.experiments.config import EvalConfig
from dynadapt.runs.metrics import read_run
from dynadapt.runs.rundir import RunError, read_json, write_json
from dynadapt.runs.whole_files import read_json_or

from .cells import CellFailed, Cells
from .plan import Pace, Plan, fits, make_plan, whole_plan
from .show import shown
from .variants import COMPARED, CORE, SEGMENT, TEXT, TITLES, TOKENS, VARIANTS, demo_cells

CHANGE = "change --tokens, --segment, --minutes or --out"


def run_demo(out: str, tokens: int | None = None, segment: int = SEGMENT, minutes: float = 3.0, **base) -> int:
    """Runs the variants and returns the exit status.

    1. Time a static and a LoRA segment, and plan what fits into `minutes`; with minutes 0, or `tokens` given, all variants run on
       all of the text (or on `tokens` of it), however long that takes. The plan is kept in OUT/plan.json, and the same call goes on
       with it; another call makes another plan, whose cells have a directory of their own.
    2. Run what is not finished, each cell in a process of its own, what matters most first. What no longer fits is left out.
    3. Print the table and the clock; write results.json, loss_against_flops.png and compare.html.

    `base` replaces settings of every cell. Raises RunError, ModelError's words included, for what can't be begun at all.
    """
    demo = _Demo(Path(out), tokens, segment, minutes, base)
    try:
        with Cells() as demo.cells:
            demo.look()
            demo.run()
    except KeyboardInterrupt:
        demo.keep()
        print("dynadapt: demo stopped; the same command goes on", file=sys.stderr)
        return 130
    return demo.end()


def kept_rates(plan: dict) -> dict[str, float]:
    """The rates of a kept plan by what learns; a plan of before there were any but LoRA's has "lr", and goes on as it was begun."""
    return plan["rates"] if "rates" in plan else {"lora": plan["lr"]} if plan.get("lr") else {}


class _Demo:
    def __init__(self, out: Path, tokens, segment, minutes, base):
        self.begun = time.monotonic()
        self.out, self.segment, self.base = out, segment, {"text": (TEXT,), **base}
        self.budget = None if tokens or not minutes else 60.0 * minutes
        self.asked = {
            "tokens": tokens,
            "segment": segment,
            "minutes": minutes,
            **{name: list(value) if isinstance(value, tuple) else value for name, value in self.base.items()},
        }
        self.most, self.console = tokens or TOKENS, Console(soft_wrap=True, highlight=False)
        self.pace: Pace | None = None
        self.plan: Plan | None = None
        self.dtype, self.worked_before = "", 0.0
        self.rates: dict[str, float] = {}  # by what learns, where the model's family wants others than most
        self.failures: dict[str, str] = {}
        self.left_out: list[str] = []

    # ---- planning

    def look(self) -> None:
        """The kept plan of this call, or a new one."""
        if self.out.exists() and not self.out.is_dir():
            raise RunError(f"{self.out} is a file; --out names a directory")
        self.out.mkdir(parents=True, exist_ok=True)
        if any(self.out.iterdir()) and not (self.out / "plan.json").is_file():
            raise RunError(f"{self.out} is not empty and holds no demo (no plan.json); choose another --out")
        kept = read_json_or(self.out / "plan.json", {})
        if isinstance(kept, dict) and kept.get("asked") == self.asked:
            self.pace = Pace(**kept["pace"]) if kept["pace"] else None
            self.plan = Plan(tuple(kept["variants"]), kept["tokens"], kept["seconds"])
            self.dtype, self.rates, self.worked_before = kept["dtype"], kept_rates(kept), kept["worked"]
        else:
            self._make_plan()
        self.keep()
        self._say_plan(kept.get("asked") == self.asked)

    def _make_plan(self) -> None:
        config = EvalConfig(**{"memory": 0, "segment": self.segment, **self.base})
        if self.budget:
            self.console.print(f"{Path(config.model).name}: timing a segment of {self.segment} tokens on this machine", markup=False)
        try:
            found = self.cells.ask(what="look", config={**config.to_dict(), "bos": config.bos, "lr": config.lr}, time=bool(self.budget))
        except CellFailed as failed:
            raise RunError(str(failed)) from None
        self.dtype, self.rates = found["dtype"], found["rates"]
        if not self.budget:
            self.plan = whole_plan(self.most)
            return
        self.pace = Pace(found["static"], found["lora"], found["start"])
        self.plan = make_plan(self.pace, self.budget - self.worked, self.segment, self.most)

    def _say_plan(self, kept: bool) -> None:
        plan, say = self.plan, lambda text: self.console.print(text, markup=False)  # noqa: E731
        text = ", ".join(name.removeprefix("builtin:") for name in self.base["text"])
        model = Path(self.base.get("model", EvalConfig.model)).name
        say(f"{model} in {self.dtype} on {plan.tokens:,} tokens of {text}, segments of {self.segment}; runs in {self.folder}/")
        if not self.pace:
            return say(f"all {len(plan.names)} variants, without a clock")
        rates = self.segment / self.pace.static, self.segment / self.pace.lora
        whole = plan.tokens >= self.most and len(plan.names) == len(VARIANTS)
        what = (
            ("goes on with its plan: " if kept else "")
            + f"{len(plan.names)} variants"
            + ("" if whole else f" of {len(VARIANTS)}")
            + ("" if plan.tokens >= self.most else f", {plan.tokens / self.most:.0%} of the usual text")
        )
        say(
            f"a segment takes {self.pace.static:.2f} s static ({rates[0]:,.0f} tokens/s), {self.pace.lora:.2f} s learning ({rates[1]:,.0f}); "
            f"{what}: about {_clock(plan.seconds)} of work"
            + ("" if plan.seconds <= self.budget else f", more than the {_clock(self.budget)} asked for: the least that shows anything")
        )

    @property
    def folder(self) -> Path:
        model = "" if "model" not in self.base else f"{Path(self.base['model']).name}-"
        return self.out / (f"{model}{self.plan.tokens}-tokens-{self.dtype}" + f"-segment-{self.segment}" * (self.segment != SEGMENT))

    @property
    def worked(self) -> float:
        return time.monotonic() - self.begun

    def keep(self) -> None:
        if self.plan is not None:
            write_json(
                self.out / "plan.json",
                {
                    "asked": self.asked,
                    "variants": list(self.plan.names),
                    "tokens": self.plan.tokens,
                    "seconds": self.plan.seconds,
                    "dtype": self.dtype,
                    "rates": self.rates,
                    "pace": vars(self.pace) if self.pace else None,
                    "worked": self.worked_before + self.worked,
                },
            )

    # ---- running

    def run(self) -> None:
        cells = demo_cells(self.plan.names, self.plan.tokens, self.segment, self.rates, **{**self.base, "dtype": self.dtype})
        spent = expected = 0.0
        segments = (self.plan.tokens - 1) / self.segment
        with shown(self.plan.names, self.console) as table:
            for number, cell in enumerate(cells):
                finished = self._finished(cell)
                if (
                    finished is None
                    and self.pace
                    and number >= CORE
                    and not fits(self.pace, cell.name, segments, self.budget - self.worked, max(1.0, spent / expected) if expected else 1.0)
                ):
                    self.left_out.append(cell.name)
                    continue
                if finished is None:
                    begun = time.monotonic()
                    self._one(cell, table)
                    if self.pace:
                        spent, expected = spent + time.monotonic() - begun, expected + self.pace.cell(cell.name, segments)
                    finished = self._finished(cell)
                    self.keep()
                if finished is not None:
                    table.row(cell.name, finished)

    def _finished(self, cell) -> dict | None:
        path = self.folder / cell.name
        if not (path / "summary.json").is_file():
            return None
        if not cell.config.matches(read_json(path / "config.json")):
            raise RunError(f"{path} holds another run; {CHANGE}")
        return read_json(path / "summary.json")

    def _one(self, cell, table) -> None:
        def on_event(event: dict) -> None:
            share = "" if event["fraction"] is None else f"{event['fraction']:.0%}, "
            table.status(
                f"{TITLES[cell.name]}: {share}NLL {event['total_nll']:.4f}, "
                f"{event['total_tokens'] / event['total_seconds']:,.0f} tokens/s; worked {_clock(self.worked)}"
                + (f" of {_clock(self.budget)}" if self.budget else "")
            )

        table.status(f"{TITLES[cell.name]}: loading")
        try:
            self.cells.ask(
                on_event, what="cell", config={**cell.config.to_dict(), "bos": cell.config.bos}, out=str(self.folder / cell.name)
            )
        except CellFailed as failed:
            self.failures[cell.name] = str(failed)
            table.say(f"{TITLES[cell.name]}: {failed}")

    # ---- the end

    def end(self) -> int:
        say = lambda text: self.console.print(text, markup=False)  # noqa: E731
        runs = [
            read_run(self.folder / name) for name in VARIANTS if name in self.plan.names and (self.folder / name / "summary.json").is_file()
        ]
        if self.left_out:
            say(f"left out for want of time: {', '.join(TITLES[name] for name in self.left_out)}; the same command runs them")
        written = []
        if runs:
            from dynadapt.experiments.plot import plot_cost

            results = [{"name": r.name, "title": TITLES[r.name], "config": r.config, "summary": r.summary} for r in runs]
            write_json(self.out / "results.json", {"runs": results})
            written = [self.out / "results.json", plot_cost(runs, self.out / "loss_against_flops.png", TITLES)]
        page = self._compare({run.name for run in runs})
        earlier = f", {_clock(self.worked_before + self.worked)} with what was done before" if self.worked_before >= 1 else ""
        say(f"worked {self.worked:.0f} s" + (f" of {self.budget:.0f} planned" if self.budget else "") + earlier)
        self.keep()
        for path in written:
            say(str(path))
        if page:
            say(page)
        return 1 if self.failures else 0

    def _compare(self, there: set[str]) -> str:
        """Writes the page and returns what to do with it; "" where its runs are not there."""
        if not there.issuperset(COMPARED):
            return ""
        from dynadapt.experiments.compare import read_compared, summarise, write_page
        from dynadapt.experiments.compare.tables import sentence

        compared = read_compared([str(self.folder / name) for name in COMPARED])
        summary = summarise(compared)
        path = self.out / "compare.html"
        write_page(path, compared, summary)
        for pair in summary["pairs"]:
            with suppress(KeyError):
                self.console.print(sentence(summary, pair), markup=False)
        return f"{path}: open it in a browser to see where in the text learning gained, token by token"


def _clock(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.1f} min"
