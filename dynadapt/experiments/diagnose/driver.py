"""Runs a diagnosis from its models and texts to its summary."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from dynadapt.common.digests import digest_of
from dynadapt.experiments.config import EvalConfig
from dynadapt.experiments.defaults import at_family_rate, settled_dtype
from dynadapt.experiments.dyneval import RunOptions, run
from dynadapt.runs.logs import check_logs, show_finished
from dynadapt.runs.rundir import RunDirectory, RunError
from dynadapt.runs.text import Source, TextError, expand, inputs, streaming_tokenizer

from . import attribution, similarity
from .classes import CLASSES, classify, keywords, token_texts, visible
from .config import DiagnoseConfig
from .models import adapter_engine, check_tokenizers, is_adapter, learned_engine
from .repeats import find_repeats
from .scored import Scored, read_scored
from .texts import TITLES, gather, read_text, read_tokens, write_control
from .verdict import DIVERGED, MARGIN, diverged, evidence, judge

LEARNED = ("tokens", "nll", "updates", "learned_parameters", "seconds")
AGAINST = 15  # of those that changed the other way
SHOWN = 50  # token types that the summary lists; types.csv has all of them
SAMPLE = 100_000  # bytes of the text on which two tokenizers must agree
REFERENCE_TOKENS = 1 << 20  # of the reference text that are compared at most


def run_diagnosis(
    config: DiagnoseConfig,
    out: str | Path,
    resume: bool = False,
    announce: Callable[[str], Callable | None] | None = None,
    model=None,
    log: Sequence[str] = (),
) -> dict:
    """Runs to the end, or on to the end with `resume`, and returns the summary.

    1. Check the texts, load the models, check that their tokenizers are the same, look at the run directory (a finished one is
       returned as it is) and begin it.
    2. Make the model after, where it is to learn from the texts to learn.
    3. Score the held-out text with both, and the normal forms of the controls with both.
    4. Attribute the change, look for learned paragraphs, compare the text with the reference, judge; write summary.json, types.csv and page.html.

    announce(what) is called before each run with its name and may return a function for the run's progress events.
    Every run is a directory of its own inside `out` (before, after, learn, ...); finished ones are kept by a resumed diagnosis.
    log: names of logs (runs/logs.py) that see these runs, and then the summary.
    Raises TextError, ConfigError, ModelError, RunError, Interrupted.
    """
    out, log = Path(out), check_logs(log)
    if (out / "summary.json").exists() and not resume:
        raise RunError(f"{out} holds a finished diagnosis; read {out / 'summary.json'}, or choose another --out")
    texts, learn, reference = groups = [gather(specs, config.eval.field) for specs in (config.eval.text, config.learn, config.reference)]
    _check_unseen(texts, learn)
    contents = {path: fact["sha256"] for group in groups for path, fact in inputs(group, [source.check() for source in group]).items()}
    before = _load(config.eval.model) if model is None else model
    config = replace(config, eval=config.eval.with_(dtype=settled_dtype(config.eval, out, resume)))
    if config.learn:  # what the run of its own learns at is what this one's files say
        config = replace(config, eval=at_family_rate(config.eval, before.config))
    kind = "learned" if config.learn else "adapter" if is_adapter(config.after) else "model"
    after = _load(config.after) if kind == "model" else None
    if after is not None:
        check_tokenizers(before, after, read_text(texts[0], SAMPLE))
    prints = {"before": before.fingerprint(), "after": after and after.fingerprint()}
    directory = RunDirectory(out, {**config.to_dict(), "contents": contents, "models": prints}, resume, scores=False)
    try:
        directory.expect(_adapter_files(config.after) if kind == "adapter" else {})
        directory.expect({"the tokenizer": before.tokenizer.fingerprint()})
        if directory.finished:
            return directory.finished
        directory.begin()
        stage = _Stage(config, out, before, after, kind, announce or (lambda what: None), log)
        summary = directory.finish(stage.finish(texts, learn, reference))
        show_finished(log, out, directory.config, summary)
        return summary
    finally:
        directory.close()


def _adapter_files(path: str) -> dict[str, dict]:
    names = ("adapter_config.json", "adapter_model.safetensors")
    return {f"{name} of adapter {path!r}": digest_of(Path(path) / name) for name in names if (Path(path) / name).is_file()}


def _load(name: str):
    import dynadapt.model

    model = dynadapt.model.load(name)
    if model.tokenizer is None:
        raise RunError(f"model {name!r} has no tokenizer; put its tokenizer.json next to the weights, or take a GGUF file that holds one")
    return model


def _check_unseen(texts: list[Source], learn: list[Source]) -> None:
    seen = {source.check()["sha256"]: source.spec for source in learn}
    for source in texts if seen else ():
        if twin := seen.get(source.check()["sha256"]):
            raise TextError(f"text {source.spec!r} is held out, but {twin!r} to learn from is the same text; give another one")


class _Stage:
    """The runs of one diagnosis, and what becomes of their scores."""

    def __init__(self, config, out, before, after, kind, announce, log):
        self.config, self.out, self.before, self.after, self.kind = config, out, before, after, kind
        self.announce, self.log = announce, log
        self.tokenizer = streaming_tokenizer(before.tokenizer)
        self.make_after = None

    def finish(self, texts: list[Source], learn: list[Source], reference: list[Source]) -> dict:
        learned = None
        if self.kind == "learned":
            learning = self.config.learning(self.config.learn)
            title = "learning from " + ", ".join(self.config.learn)
            learned = self._run("learn", title, learning, RunOptions(resume=True), self.before)
            self.make_after = learned_engine(learning, self.out / "learn")
        elif self.kind == "adapter":
            self.make_after = adapter_engine(self.config.after, self.out / "adapter")
        scored, runs = self._score(self.config.scoring(self.config.eval.text), texts, "")
        controls = [self._control(name, texts) for name in self.config.control_names]
        compared, keyword = self._compare(scored, texts, reference)
        read = self._learned_texts(learn) if learn else None
        summary, types, classes = diagnosis_of(
            scored, self.before.tokenizer.backend, keyword, [c for c in controls if c], self.config.margin, read
        )
        summary.update(
            kind="diagnosis",
            model=self.config.eval.model,
            after=self.config.after or "learned",
            text=list(self.config.eval.text),
            bits_per_byte={name: r["bits_per_byte"] for name, r in runs.items()},
            base_nll=runs["before"]["nll"],
            similarity=compared,
            learned=learned and {key: learned[key] for key in LEARNED},
            flops=sum(sum(r["flops"].values()) for r in runs.values()),
        )
        from .page import write_page
        from .report import write_types

        write_types(self.out / "types.csv", types, classes, self.before.tokenizer.backend)
        write_page(self.out / "page.html", summary)
        return summary

    def _run(self, name: str, title: str, config, options: RunOptions, model, make_engine=None) -> dict:
        return run(config, self.out / name, replace(options, log=self.log), self.announce(title), model, make_engine)

    def _score(self, config: EvalConfig, texts: list[Source], label: str) -> tuple[Scored, dict]:
        options = RunOptions(resume=True, scores=True, checkpoint=0)
        suffix, of = (f"-{label}", f", {TITLES[label]}") if label else ("", "")
        runs = {"before": self._run(f"before{suffix}", f"scoring with the model before{of}", config, options, self.before)}
        second = config.with_(model=self.config.after) if self.kind == "model" else config
        runs["after"] = self._run(
            f"after{suffix}", f"scoring with the model after{of}", second, options, self.after or self.before, self.make_after
        )
        scored = read_scored(self.out / f"before{suffix}", self.out / f"after{suffix}", texts, self.tokenizer, config.segment)
        return scored, runs

    def _control(self, name: str, texts: list[Source]) -> dict | None:
        files = write_control(name, texts, self.out / f"texts-{name}", self.config.eval.tokens)
        if not files:
            return None
        scored, _ = self._score(self.config.scoring(files, field="text"), expand(files), name)
        low, high = attribution.mean_interval(scored.change, attribution.units(scored))
        return {
            "name": name,
            "title": TITLES[name],
            "tokens": len(scored.tokens),
            "change": float(scored.change.mean()),
            "interval": [low, high],
        }

    def _learned_texts(self, learn: list[Source]) -> Iterator[str]:
        """The documents that were learned from, as far as they were, in the words of their tokens."""
        left = self.config.learn_tokens
        for source in learn:
            if left == 0:
                return
            ids, of = np.unique(read_tokens([source], self.tokenizer, left), return_inverse=True)
            left = None if left is None else left - len(of)
            texts = token_texts(self.before.tokenizer.backend, ids)
            yield "".join(texts[i] for i in of)

    def _compare(self, scored: Scored, texts: list[Source], reference: list[Source]) -> tuple[dict | None, np.ndarray | None]:
        """Similarity to the reference text and the keywords against it, or (None, None) without one."""
        if not reference:
            return None, None
        vocabulary = self.before.config.vocab_size
        other = read_tokens(reference, self.tokenizer, REFERENCE_TOKENS)
        compared = similarity.with_reference(
            scored.tokens, texts, other, reference, self.config.reference, vocabulary, self.config.embeddings
        )
        return compared, keywords(scored.tokens, other, vocabulary)


def diagnosis_of(
    scored: Scored,
    tokenizer,
    keyword: np.ndarray | None,
    controls: list[dict] = (),
    margin: float = MARGIN,
    learned: Iterable[str] | None = None,
) -> tuple[dict, attribution.Types, np.ndarray]:
    """The summary of scored tokens, with their types and the class of each.

    tokenizer: a tokenizers.Tokenizer.   keyword: [V] bool, types that are keywords of the domain, or None if unknown.
    margin: nats below which no change is worth naming.   learned: the documents that were learned from, or None if unknown.
    """
    types, drawn = attribution.by_type(scored), attribution.units(scored)
    texts = token_texts(tokenizer, types.ids)
    classes = classify(texts, types.counts, None if keyword is None else keyword[types.ids])
    low, high = attribution.mean_interval(scored.change, drawn)
    shares = attribution.concentration(scored, types, drawn)
    change, ceiling = float(scored.change.mean()), float(np.log(tokenizer.get_vocab_size()))
    lost = diverged(float(scored.before.mean()), float(scored.after.mean()), ceiling)
    summary = {
        "verdict": DIVERGED if lost else judge((low, high), shares, margin),
        "margin": margin,
        "ceiling": ceiling,
        "change": change,
        "interval": [low, high],
        "units": {"name": drawn.name, "count": drawn.count},
        "tokens": len(scored.tokens),
        "types": len(types.ids),
        "nll": {"before": float(scored.before.mean()), "after": float(scored.after.mean())},
        "perplexity": {"before": attribution.perplexity(scored.before.mean()), "after": attribution.perplexity(scored.after.mean())},
        "macro_change": float(types.change.mean()),
        "tokens_improved": float((scored.change < 0).mean()),
        "types_improved": float((types.change < 0).mean()),
        "identity_error": attribution.identity_error(scored, types),
        "keywords_known": keyword is not None,
        "classes": attribution.by_class(scored, types, classes, drawn),
        "concentration": shares,
        "top_types": [_type_record(types, i, texts[i], classes[i]) for i in attribution.leading_types(types, SHOWN)],
        "against": [_type_record(types, i, texts[i], classes[i]) for i in attribution.leading_types(types, AGAINST, True)],
        "places": attribution.by_place(scored),
        "documents": _documents(scored),
        "repeats": None if learned is None else _repeats(scored, types, texts, learned),
        "controls": list(controls),
    }
    summary["evidence"] = evidence(summary)
    return _plain(summary), types, classes


def _type_record(types: attribution.Types, i: int, text: str, c: int) -> dict:
    return {
        "id": int(types.ids[i]),
        "text": text,
        "shown": visible(text),
        "class": CLASSES[c],
        "count": int(types.counts[i]),
        "before": float(types.before[i]),
        "after": float(types.after[i]),
        "change": float(types.change[i]),
        "contribution": float(types.contribution[i]),
    }


def _repeats(scored: Scored, types: attribution.Types, texts: list[str], learned: Iterable[str]) -> dict:
    order = np.argsort(scored.document, kind="stable")
    of, begins = types.of[order], np.unique(scored.document[order], return_index=True)[1]
    documents = [[texts[i] for i in part] for part in np.split(of, begins[1:])]
    return find_repeats(documents, scored.change[order], learned)


def _documents(scored: Scored) -> list[dict]:
    records = []
    for number in np.unique(scored.document):
        inside = scored.document == number
        records.append(
            {
                "name": scored.names[number],
                "tokens": int(inside.sum()),
                "before": float(scored.before[inside].mean()),
                "after": float(scored.after[inside].mean()),
            }
        )
    return records


def _plain(value):
    """JSON has no infinity: an interval that is not known has no ends."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
