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
  refuted where every domain that did not diverge helps, with an interval wholly below 0, and they are so many that at most 5% of such domains could get worse
  (with 95%; it takes 59, none of which chose a default); else not decided. (How many was added when all had been run: at both usual rates 10 had been refuted by nine domains.)
- 11: confirmed where either stand-in's rank correlation with the change is above 0 with p < 0.05 / 2, refuted where one is below 0 by the same; else not
  decided. Beside it the least true correlation that the rule calls with 80%, by one stand-in, what it asks of the untuned domains included. Nothing adjusts for the
  conditions, which are sixteen correlations;
- 12: confirmed where at most 10 types explain at least half of the worsening in more than half of the domains that got worse, refuted where in none of so many that with 95% it does in no
  more than half of such domains (five; three before the runs, which changes no verdict); else not decided;
- all three are confirmed or refuted where the domains whose texts chose no default say the same by themselves; else not decided. (Added when all conditions
  had been run, by which claim 10 at 4e-3, confirmed over all nine, and claim 11 at 1e-2, refuted over all nine, are not decided.)
- beside 10 the least share of such domains getting worse at which it is confirmed with 80%. Where none of these domains got worse the share of such domains that could
  stands beside it, with 95% (Clopper and Pearson, one side); so beside 12 refuted the share of domains that got worse by a handful.
- the advice, in each condition: it tells more than one answer for all domains where it is right more often than the better of "always adapt" and "never adapt",
  over the domains where these differ from it, by a sign test with p < 0.05.
"""

from __future__ import annotations

import json
import sys
from itertools import product
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a source tree needs no installation

from benchmarks.odyssey_page import markdown  # noqa: E402
from benchmarks.odyssey_rules import claims, over_all  # noqa: E402
from benchmarks.script import corpus_facts, domains_of, going_on, made_once, parser_of, write_results  # noqa: E402
from dynadapt.experiments.config import LEARNING_RATES, EvalConfig
from dynadapt.experiments.corpus_read import read_documents
from dynadapt.experiments.diagnose.advise import advise
from dynadapt.experiments.diagnose.config import DiagnoseConfig
from dynadapt.experiments.diagnose.driver import run_diagnosis
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
