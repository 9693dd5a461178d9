"""When adapting hurts: SmolLM2 adapted to each domain of a corpus, and diagnosed on text of that domain that was held out.

    dynadapt corpus build --out corpus
    python benchmarks/odyssey.py corpus --out runs/odyssey        # goes on where it was stopped; results.json and results.md

Tests three claims of "Adaptation Odyssey in LLMs" (arXiv 2410.05581), and how well `dynadapt diagnose --advise` foresees the
outcome:
  10. further pretraining on a domain can worsen perplexity on that same domain's held-out text;
  11. the worsening correlates with the similarity between the domain and the original pretraining data;
  12. it comes from a handful of uninformative tokens.

Each condition is one pass over excerpts of a domain's training documents: LoRA at its usual rate, at three between, and "hot" at five times it; full
training at its usual rate and at three and ten times it. Scored are the first 1,600 characters of held-out documents; the probe behind the advice reads windows from anywhere in the training text.
The pretraining data of SmolLM2 is not at hand, so similarity has two stand-ins: the model's own bits per byte on the domain, and
the Jensen-Shannon divergence of unigrams to text that the model itself writes, sampled from its beginning-of-text token at
temperature 1 (needs transformers).

Rules, of each condition for itself, fixed when LoRA at its usual rate and at five times it had been run, before the rates between and full training:
- what diverged (above ln V) is a verdict of its own and takes part in no claim;
- 10: confirmed where so many domains got worse, with an interval wholly above 0, that chance (2.5% a domain) gives as many with a probability under 5%;
  refuted where every domain that did not diverge helps, with an interval wholly below 0; else not decided;
- 11: confirmed where either stand-in's rank correlation with the change is above 0 with p < 0.05 / 2, refuted where one is below 0 by the same; else not
  decided. Beside it the least true correlation that the rule calls with 80%, by one stand-in, what it asks of the untuned domains included. Nothing adjusts for the
  conditions, which are sixteen correlations;
- 12: confirmed where at most 10 types explain at least half of the worsening in more than half of the domains that got worse, refuted where in none of at least
  three; else not decided;
- all three are confirmed or refuted where the domains whose texts chose no default say the same by themselves; else not decided. (Added when all conditions
  had been run, by which claim 10 at 4e-3, confirmed over all nine, and claim 11 at 1e-2, refuted over all nine, are not decided.)
- beside 10 the least share of such domains getting worse at which it is confirmed with 80%. 10 refuted means that none of these domains got worse; beside it the share of such domains that could, with 95% (Clopper and Pearson, one side); so beside
  12 refuted the share of domains that got worse by a handful.
- the advice, in each condition: it tells more than one answer for all domains where it is right more often than the better of "always adapt" and "never adapt",
  over the domains where these differ from it, by a sign test with p < 0.05.
"""

from __future__ import annotations

import json
import sys
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a source tree needs no installation

from benchmarks.script import CONFIRMED, OPEN, REFUTED, TUNED, corpus_facts, domains_of, going_on, made_once, parser_of, write_results  # noqa: E402
from dynadapt.experiments.config import LEARNING_RATES, EvalConfig
from dynadapt.experiments.corpus_read import read_documents
from dynadapt.experiments.diagnose.advise import ADAPT, LEAVE, advise, outcome_interval, size_factor
from dynadapt.experiments.diagnose.config import DiagnoseConfig
from dynadapt.experiments.diagnose.driver import run_diagnosis
from dynadapt.experiments.diagnose.verdict import DIVERGED
from dynadapt.runs.progress import Lines
from dynadapt.runs.rundir import RunError, read_json, write_json
from dynadapt.runs.stopping import Interrupted

LORA, FULL = (LEARNING_RATES[adapt]["adam"] for adapt in ("lora", "full"))
CONDITIONS = {
    "lora": {},
    "lora-3e-3": {"lr": 3e-3},
    "lora-4e-3": {"lr": 4e-3},
    "lora-6e-3": {"lr": 6e-3},
    "lora-hot": {"lr": 5 * LORA},
    "full": {"adapt": "full"},
    "full-3e-4": {"adapt": "full", "lr": 3 * FULL},
    "full-1e-3": {"adapt": "full", "lr": 10 * FULL},
}
CHANCE, LEVEL = 0.025, 0.05  # of an interval wholly above 0 where nothing changed; of a verdict
VOCABULARY = 49152  # of SmolLM2: a perplexity above it is worse than a uniform guess
SHOWN = 0.9  # a true rank correlation whose power is given
HELD_OUT, EXCERPT = 24, 1600  # documents of a domain that are scored, and characters of each
TRAIN_EXCERPT = 4000  # characters of each training document


def excerpts(path: Path, out: Path, characters: int, count: int | None = None) -> Path:
    """The first `characters` of documents spread over a corpus file, as a .jsonl file."""
    documents = [text for _, text in read_documents(path)]
    if count is not None and len(documents) > count:
        documents = [documents[i] for i in np.linspace(0, len(documents) - 1, count).astype(int)]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("".join(json.dumps({"text": text[:characters]}) + "\n" for text in documents), "utf-8")
    return out


def sampled(model: str, out: Path, rows: int = 32, tokens: int = 256) -> Path:
    """Text that the model writes from its beginning-of-text token; kept once written."""
    return made_once(out, lambda whole: _sample(model, whole, rows, tokens))


def _sample(model: str, out: Path, rows: int, tokens: int) -> None:
    import torch
    import transformers

    import dynadapt
    from dynadapt.model.fetch import cached

    directory = cached(model) or Path(model)
    live = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16)
    tokenizer = dynadapt.load(model).tokenizer
    torch.manual_seed(0)
    start = torch.full((rows, 1), live.config.bos_token_id)
    ids = live.generate(
        start, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=tokens, pad_token_id=live.config.eos_token_id
    )
    special = (live.config.bos_token_id, live.config.eos_token_id)
    texts = [tokenizer.decode([token for token in row[1:].tolist() if token not in special]) for row in ids]
    out.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts if text.strip()), "utf-8")


def run_domain(name: str, condition: str, arguments, reference: Path) -> dict:
    """Advice, then adaptation and diagnosis, of one domain; finished parts are read from their files."""
    folder = arguments.out / condition / name
    source, texts = arguments.corpus / name, arguments.out / "texts" / name
    train = excerpts(source / "train.jsonl", texts / "train.jsonl", TRAIN_EXCERPT)
    held = excerpts(source / "heldout.jsonl", texts / "heldout.jsonl", EXCERPT, HELD_OUT)
    config = EvalConfig(model=arguments.model, segment=arguments.segment, memory=0, dtype="bf16", **CONDITIONS[condition])
    if (folder / "advice" / "summary.json").exists():
        advised = read_json(folder / "advice" / "summary.json")
    else:
        advised = advise(config, (str(train),), (), arguments.windows, folder / "advice", announce=said)
    chosen = DiagnoseConfig(
        config.with_(text=(str(held),)),
        learn=(str(train),),
        learn_tokens=arguments.learn_tokens,
        reference=(str(reference),),
        control=arguments.control,
    )
    return row_of(name, condition, advised, run_diagnosis(chosen, folder / "diagnosis", resume=True, announce=said))


def row_of(name: str, condition: str, advised: dict, found: dict) -> dict:
    """What the results keep of one domain's advice and diagnosis."""
    ten = next(record for record in found["concentration"] if record["types"] == 10)
    return {
        "domain": name,
        "condition": condition,
        "tokens": found["tokens"],
        "documents": len(found["documents"]),
        "change": found["change"],
        "interval": found["interval"],
        "verdict": found["verdict"],
        "ceiling": found["ceiling"],
        "perplexity": found["perplexity"],
        "bits_per_byte": found["bits_per_byte"]["before"],
        "divergence": found["similarity"]["orders"][0]["divergence"],
        "top10": ten,
        "largest": [t["shown"] for t in found["top_types"][:5]],
        "controls": found["controls"],
        "advice": advised["advice"],
        "expected": advised["expected_change"],
        "expected_interval": advised["interval"],
    }


def said(title: str):
    print(f"    {title}", flush=True)
    return Lines(sys.stdout, every=20)


# -------------------------------------------------------------------------------------------------------------- analysis


def spearman(x, y, draws: int = 2000) -> dict:
    """Rank correlation over domains with a percentile interval from drawing domains, and a two-sided permutation p-value."""
    x, y, random = np.asarray(x, float), np.asarray(y, float), np.random.default_rng(0)
    drawn = []
    if len(set(x)) < 3 or len(set(y)) < 3:
        return {"rho": 0.0, "interval": [-1.0, 1.0], "p": 1.0, "domains": len(x)}  # all alike: no order that could go with another
    value = float(_rank_correlation(x[None], y[None])[0])
    while len(drawn) < draws:
        chosen = random.integers(0, len(x), len(x))
        if len(set(x[chosen])) > 2 and len(set(y[chosen])) > 2:
            drawn.append(chosen)
    permuted = np.stack([random.permutation(len(x)) for _ in range(draws)])
    by_chance = abs(_rank_correlation(x[None], y[permuted])) >= abs(value) - 1e-12
    found = _rank_correlation(x[drawn], y[drawn])
    return {"rho": value, "interval": np.quantile(found, [0.025, 0.975]).tolist(), "p": float(by_chance.mean()), "domains": len(x)}


def _rank_correlation(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """[draws] Spearman's correlation of each row of x [draws or 1, n] with that of y [draws, n]."""
    from scipy.stats import rankdata

    a, b = (rankdata(values, axis=1) for values in (x, y))
    a, b = (ranks - ranks.mean(axis=1, keepdims=True) for ranks in (a, b))
    return (a * b).sum(axis=1) / np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))


def claims(rows: list[dict]) -> dict:
    """What the domains of one condition say about claims 10 to 12 and about the advice."""
    change = [row["change"] for row in rows]
    whole = [row for row in rows if not _diverged(row)]  # adaptation that broke the model says nothing of the domain
    hurt = [row for row in whole if row["verdict"].startswith("hurts")]
    expected = [row["expected"] for row in rows]
    apart = np.array(change) - np.array(expected)
    decided = [row for row in rows if row["advice"] in (ADAPT, LEAVE, DIVERGED)]
    right = [row for row in decided if (row["change"] < 0) == (row["advice"] == ADAPT)]
    nearness, sizes = nearness_of(whole), (len(whole), len(untuned(whole)))
    return {
        "10": {
            "domains": len(rows),
            "worse": [row["domain"] for row in hurt],
            "share_at_most": share_at_most(len(hurt), len(whole)),
            "share_at_most, untuned": share_at_most(len(untuned(hurt)), len(untuned(whole))),
            "share seen with 80%": seen_share(*sizes),
            "diverged": [row["domain"] for row in rows if row not in whole],
        },
        "11": nearness,
        "11, untuned": nearness_of(untuned(whole)),
        "12": {
            row["domain"]: {
                "verdict": row["verdict"],
                "held_out_share_of_10": row["top10"]["held_out"],
                "tokens": row["top10"]["tokens"],
                "largest": row["largest"],
            }
            for row in hurt
        },
        "12, share_at_most": {
            name: share_at_most(few_of(found), len(found)) for name, found in (("all", hurt), ("untuned", untuned(hurt)))
        },
        "advice": {
            "decided": len(decided),
            "right": len(right),
            "always_adapting_right": sum(row["change"] < 0 for row in decided),
            "never_adapting_right": sum(row["change"] >= 0 for row in decided),
            "mean_error": float(apart.mean()),
            "mean_absolute_error": float(abs(apart).mean()),
            "covered": sum(row["expected_interval"][0] <= row["change"] <= row["expected_interval"][1] for row in rows),
            "rank_correlation": len(rows) > 3 and spearman(expected, change),
            "calibrated": calibrated(rows),
        },
        "verdicts": {
            "10": alike(verdict_10(whole, hurt), verdict_10(untuned(whole), untuned(hurt))),
            "11": alike(verdict_11(nearness), verdict_11(nearness_of(untuned(whole)))),
            "12": alike(verdict_12(hurt), verdict_12(untuned(hurt))),
            "advice": verdict_advice(decided),
            "rank correlation seen with 80%": seen_correlation(*sizes) if nearness else None,
            f"power at a rank correlation of {SHOWN:g}": correlation_power(*sizes, SHOWN) if sizes[1] > 3 else None,
        },
    }


def nearness_of(rows: list[dict]) -> dict | bool:
    """Rank correlations of both stand-ins for nearness to the pretraining text with the change; False for fewer than four domains."""
    change = [row["change"] for row in rows]
    return len(rows) > 3 and {
        "nearness by bits per byte": spearman([-row["bits_per_byte"] for row in rows], change),
        "nearness by divergence": spearman([-row["divergence"] for row in rows], change),
    }


def share_at_most(count: int, of: int) -> float:
    """The largest share of domains that could be so where `count` of `of` were, with 95% (Clopper and Pearson)."""
    from scipy.stats import beta

    return float(beta.ppf(1 - LEVEL, count + 1, of - count)) if count < of else 1.0


@cache
def seen_share(domains: int, untuned: int) -> float | None:
    """The least share of such domains that get worse, in steps of 1%, at which verdict 10's rule says confirmed with a probability of 80%: enough of all domains, and
    of the untuned among them; None where none is."""
    from scipy.stats import binom

    enough = lambda n: next((k for k in range(1, n + 1) if binom.sf(k - 1, n, CHANCE) < LEVEL), n + 1)  # noqa: E731
    of_all, of_untuned = enough(domains), enough(untuned)
    for percent in range(1, 101):
        chance = lambda k, n: binom.pmf(k, n, percent / 100)  # noqa: B023, E731
        called = sum(
            chance(k, untuned) * binom.sf(of_all - k - 1, domains - untuned, percent / 100) for k in range(of_untuned, untuned + 1)
        )
        if called >= 0.8:
            return percent / 100
    return None


def untuned(rows: list[dict]) -> list[dict]:
    """Without domains whose texts chose defaults."""
    return [row for row in rows if row["domain"] not in TUNED]


def alike(verdict: str, of_untuned: str) -> str:
    return verdict if verdict == of_untuned else OPEN


def verdict_10(whole: list[dict], hurt: list[dict]) -> str:
    """Of the domains that did not diverge, and of those among them that got worse; by the rules above, as the others."""
    from scipy.stats import binom

    worse = [row for row in hurt if row["interval"][0] is not None and row["interval"][0] > 0]
    if whole and binom.sf(len(worse) - 1, len(whole), CHANCE) < LEVEL:
        return CONFIRMED
    helps = [row for row in whole if row["interval"][1] is not None and row["interval"][1] < 0]
    return REFUTED if whole and len(helps) == len(whole) else OPEN


def verdict_11(nearness) -> str:
    if not nearness:
        return OPEN
    seen = [rho["rho"] for rho in nearness.values() if rho["p"] < LEVEL / 2]
    above, below = any(rho > 0 for rho in seen), any(rho < 0 for rho in seen)
    return OPEN if above == below else CONFIRMED if above else REFUTED


def few_of(hurt: list[dict]) -> int:
    """How many of the domains that got worse did so by a handful of types."""
    return sum(row["verdict"] == "hurts on few types" for row in hurt)


def verdict_12(hurt: list[dict]) -> str:
    few = few_of(hurt)
    return CONFIRMED if hurt and 2 * few > len(hurt) else REFUTED if len(hurt) >= 3 and not few else OPEN


def verdict_advice(decided: list[dict]) -> str:
    """Whether the advice tells more than the better of one answer for all domains."""
    from scipy.stats import binomtest

    helped = [row["change"] < 0 for row in decided]
    same = 2 * sum(helped) >= len(helped)  # the better of "always" and "never"
    advised = [row["advice"] == ADAPT for row in decided]
    apart = [(advice == help, same == help) for advice, help in zip(advised, helped) if advice != same]
    wins = sum(advice and not other for advice, other in apart)
    if not apart or binomtest(wins, len(apart), 0.5).pvalue >= LEVEL:
        return OPEN
    return CONFIRMED if 2 * wins > len(apart) else REFUTED


@cache
def _critical(domains: int) -> float:
    """What a rank correlation by chance is at most, but for verdict 11's level."""
    random, draws = np.random.default_rng(0), 8000
    base = np.arange(domains, dtype=float)
    by_chance = _rank_correlation(base[None], np.stack([random.permutation(domains) for _ in range(draws)]).astype(float))
    return float(np.quantile(np.abs(by_chance), 1 - LEVEL / 2)) + 1e-9


@cache
def correlation_power(domains: int, untuned: int, rho: float, runs: int = 4000) -> float:
    """The probability that verdict 11's rule calls a true rank correlation rho (bivariate normal) by one stand-in: beyond chance over all domains, and
    over the untuned among them too."""
    random = np.random.default_rng(1)
    pearson = 2 * np.sin(np.pi * rho / 6)  # of a bivariate normal with this rank correlation
    x, noise = random.standard_normal((runs, domains)), random.standard_normal((runs, domains))
    y = pearson * x + np.sqrt(1 - pearson**2) * noise
    of_all, of_untuned = _rank_correlation(x, y), _rank_correlation(x[:, :untuned], y[:, :untuned])
    return float(((of_all > _critical(domains)) & (of_untuned > _critical(untuned))).mean())


def seen_correlation(domains: int, untuned: int) -> float | None:
    """The least true rank correlation, in steps of 0.05, that the rule calls with a probability of 80%; None where none below 1 is."""
    if untuned < 4:
        return None  # of so few verdict 11 is never called
    return next(
        (round(float(rho), 2) for rho in np.arange(0.05, 1.0, 0.05) if correlation_power(domains, untuned, round(float(rho), 2)) >= 0.8),
        None,
    )


def _diverged(row: dict) -> bool:
    """By its verdict, or, in rows from before there was one, by a perplexity above the size of SmolLM2's vocabulary."""
    return row["verdict"] == DIVERGED or "ceiling" not in row and row["perplexity"]["after"] > VOCABULARY


def over_all(conditions: dict[str, list[dict]]) -> dict:
    """The advice of all conditions together, whose rows are not independent: how often its sign was right, and for foreseen gains and rises the factor to the outcome
    (advise.py has them) with how many outcomes would have been held by the factor of the other domains."""
    rows = [row for found in conditions.values() for row in found]
    decided = [row for row in rows if row["advice"] in (ADAPT, LEAVE, DIVERGED)]
    found: dict = {
        "rows": len(rows),
        "covered": sum(row["expected_interval"][0] <= row["change"] <= row["expected_interval"][1] for row in rows),
        "decided": len(decided),
        "right": sum((row["change"] < 0) == (row["advice"] == ADAPT) for row in decided),
    }
    for name, there in (("gain", [row for row in rows if row["expected"] < 0]), ("rise", [row for row in rows if row["expected"] > 0])):
        ratios = _ratios(there)
        held = sum(_held(row, _of_others(row, there, ratios)) for row in there)
        factor = size_factor(ratios[ratios > 0]) if (ratios > 0).any() else None
        found[name] = {"of": len(there), "factor": factor, "held": held, "other_sign": int((ratios <= 0).sum())}
    return found


def _ratios(rows: list[dict]) -> np.ndarray:
    """Of measured to foreseen changes; -1 where nothing was foreseen."""
    return np.array([row["change"] / row["expected"] if row["expected"] else -1.0 for row in rows])


def _of_others(row: dict, rows: list[dict], ratios: np.ndarray) -> np.ndarray:
    """The ratios of the other domains, as far as their changes have the sign that was foreseen."""
    return ratios[np.array([other["domain"] != row["domain"] for other in rows]) & (ratios > 0)]


def _held(row: dict, ratios: np.ndarray) -> bool:
    """Whether the interval that these ratios give holds the outcome; without any there is none."""
    if not len(ratios):
        return False
    low, high = outcome_interval(row["expected"], row["expected_interval"], size_factor(ratios))
    return low <= row["change"] <= high


def calibrated(rows: list[dict]) -> dict:
    """The factor between foreseen and measured changes, and how many outcomes it would have held: each domain's interval is made
    with the factor of the others. Domains whose change has the other sign than foreseen have no factor, and count as not held."""
    ratios = _ratios(rows)
    others = [_of_others(row, rows, ratios) for row in rows]
    factor = held = None
    if rows and min(map(len, others)) >= 2:
        factor, held = size_factor(ratios[ratios > 0]), sum(map(_held, rows, others))
    found = {"factor": factor, "held": held, "of": len(rows)}
    return found if factor is None else {**found, "other_sign": int((ratios <= 0).sum())}


def markdown(results: dict) -> str:
    lines = []
    for condition, found in results["conditions"].items():
        lines += [
            f"## {condition}",
            "",
            "| domain | bits per byte | divergence | change (95%) | verdict "
            "| top 10 types, other half (tokens) | foreseen (95%) | advice |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for row in found["rows"]:
            ends = lambda pair: "-" if None in pair else f"[{pair[0]:+.3f}, {pair[1]:+.3f}]"  # noqa: E731
            share = "-" if row["top10"]["held_out"] is None else f"{row['top10']['held_out']:.0%} ({row['top10']['tokens']:.0%})"
            cells = (
                row["domain"],
                f"{row['bits_per_byte']:.3f}",
                f"{row['divergence']:.3f}",
                f"{row['change']:+.3f} {ends(row['interval'])}",
                DIVERGED if _diverged(row) else row["verdict"],
                share,
                f"{row['expected']:+.3f} {ends(row['expected_interval'])}",
                row["advice"],
            )
            lines.append("| " + " | ".join(cells) + " |")
        lines += ["", *_said(found["claims"]), ""]
    return "\n".join(lines) + "\n"


def _said(found: dict) -> list[str]:
    worse, advice = found["10"]["worse"], found["advice"]
    domains, named = found["10"]["domains"], f" ({', '.join(worse)})" * bool(worse)
    correlation = lambda rho: f"{rho['rho']:+.2f} [{rho['interval'][0]:+.2f}, {rho['interval'][1]:+.2f}]"  # noqa: E731
    said, seen = found["verdicts"], found["verdicts"]["rank correlation seen with 80%"]
    strong = found["verdicts"][f"power at a rank correlation of {SHOWN:g}"]
    ten = found["10"]
    unseen = (
        f", so that with 95% at most {ten['share_at_most']:.0%} of such domains do, by those that chose no default {ten['share_at_most, untuned']:.0%}"
        if not worse
        else ""
    )
    lines = [
        f"- Verdicts: claim 10 {said['10']}, claim 11 {said['11']}"
        + (f" (a true correlation of {seen:g} would show with 80%)" if seen else " (no true correlation below 1 shows with 80%")
        + ("" if seen else ")" if strong is None else f"; one of {SHOWN:g} with {strong:.0%})")
        + f", claim 12 {said['12']}; the advice beside one answer for all domains {said['advice']}.",
        f"- Claim 10: {len(worse)} of {domains} domains got worse{named}{unseen}; those whose texts chose defaults are {', '.join(TUNED)}."
        + (f" Confirmed with 80% where {ten['share seen with 80%']:.0%} of such domains get worse." if ten["share seen with 80%"] else ""),
    ]
    if found["10"]["diverged"]:
        lines.append(f"- Diverged (above ln V), and judged by no claim: {', '.join(found['10']['diverged'])}.")
    for name, rho in (found["11"] or {}).items():
        line = f"- Claim 11, {name}: Spearman {correlation(rho)} with the change, p = {rho['p']:.3f}, {rho['domains']} domains"
        own = (found["11, untuned"] or {}).get(name)
        lines.append(
            line + (f"; without those that chose defaults {own['rho']:+.2f}, p = {own['p']:.3f}, {own['domains']}." if own else ".")
        )
    few = [name for name, row in found["12"].items() if row["verdict"] == "hurts on few types"]
    twelve = found["12, share_at_most"]
    room = f", so that with 95% in at most {twelve['all']:.0%} of such domains do, by those that chose no default {twelve['untuned']:.0%}"
    lines.append(
        f"- Claim 12: in {len(few)} of the {len(worse)} domains that got worse, at most 10 token types explain at least half of it"
        + (f"{room}." if worse and not few else ".")
    )
    rho = advice["rank_correlation"]
    lines.append(
        f"- Advice: right in {advice['right']} of {advice['decided']} domains that it decided (always adapting: "
        f"{advice['always_adapting_right']}, never: {advice['never_adapting_right']}); measured less foreseen "
        f"{advice['mean_error']:+.3f} (mean absolute {advice['mean_absolute_error']:.3f}); {advice['covered']} of {domains} "
        "inside the interval" + (f"; rank correlation {correlation(rho)}." if rho else ".")
    )
    fit = advice["calibrated"]
    if fit["factor"]:
        lines.append(
            f"- Advice, calibrated: outcomes within a factor of {fit['factor']:.1f} of what was foreseen; with the factor "
            f"of the other domains, {fit['held']} of {fit['of']} inside."
        )
    return lines


def main() -> None:
    parser = parser_of(__doc__, "runs/odyssey")
    parser.add_argument("corpus", type=Path, nargs="?", default=Path("corpus"), help="directory that `dynadapt corpus build` made")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--domains", nargs="+", help="only these")
    parser.add_argument("--conditions", nargs="+", default=list(CONDITIONS), choices=list(CONDITIONS))
    parser.add_argument("--segment", type=int, default=512)
    parser.add_argument("--learn-tokens", type=int, default=6145)
    parser.add_argument("--windows", type=int, default=16, help="of the probe behind the advice")
    parser.add_argument("--report", type=Path, metavar="FILE", help="run nothing: analyse the rows of a results file anew, in place")
    parser.add_argument("--control", default="none", choices=("none", "newlines", "packing", "all"))
    arguments = parser.parse_args()
    if arguments.report:
        results = read_json(arguments.report)
        for found in results["conditions"].values():
            found["claims"] = claims(found["rows"])
        results["advice"] = over_all({name: found["rows"] for name, found in results["conditions"].items()})
        write_json(arguments.report, results)
        print(markdown(results))
        return
    there = domains_of(arguments.corpus, arguments.domains or [])
    reference = sampled(arguments.model, arguments.out / "texts" / "sampled.jsonl")
    done, failed = {condition: [] for condition in arguments.conditions}, []
    for condition, name in product(arguments.conditions, arguments.domains or there):
        print(f"{condition}, {name}", flush=True)
        with going_on(arguments.out):
            try:
                done[condition].append(run_domain(name, condition, arguments, reference))
            except Interrupted:
                raise
            except RunError as error:  # diverged: said, and the other domains go on
                print(f"    {error}", flush=True)
                failed.append({"domain": name, "condition": condition, "error": str(error)})
        write_done(arguments, done, failed)
    print((arguments.out / "results.md").read_text())


def write_done(arguments, done: dict[str, list[dict]], failed: list[dict]) -> None:
    """results.json and results.md of what is done so far."""
    settings = {name: getattr(arguments, name) for name in ("model", "segment", "learn_tokens", "windows", "control")}
    settings["conditions"] = {condition: CONDITIONS[condition] for condition in done}
    results = {
        "settings": settings,
        "corpus": corpus_facts(arguments.corpus),
        "conditions": {c: {"rows": rows, "claims": claims(rows)} for c, rows in done.items() if rows},
        "advice": over_all(done),
        "failed": failed,
    }
    write_results(arguments.out, results, markdown(results))


if __name__ == "__main__":
    main()
