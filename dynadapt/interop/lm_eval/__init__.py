"""dynadapt as a model of lm-evaluation-harness: ``import dynadapt.lm_eval`` registers "dynadapt".

    lm = dynadapt.lm_eval.DynadaptLM(model="smollm2-135m", adapt="lora", reset="document")
    lm_eval.simple_evaluate(model=lm, tasks=[...])

or ``python -m dynadapt.lm_eval --model dynadapt --model_args model=smollm2-135m,reset=stream --tasks ...``, which is the
harness' own command line.

``reset`` says what a score has seen, and is printed with it:

    stateless   the model as it was loaded: nothing learns;
    document    every document starts from the loaded weights; within it every segment is learned after it is scored;
    stream      as document, but weights go on from document to document of a task, in the task's order.

No token is learned before it is scored. ``loglikelihood_rolling`` scores a document segment by segment like ``dynadapt eval``,
its first token after the prefix token. For ``loglikelihood`` and ``generate_until`` the document's known text (the tokens that
the contexts of all its requests begin with) is read so, and learned; continuations are then scored, or generated, and never
learned. Answers of one document do not see each other, and under ``stream`` a document sees of the ones before it their known
text alone.
"""

from __future__ import annotations

import logging
import math
import sys
from dataclasses import fields, replace
from itertools import groupby
from os.path import commonprefix

import torch

try:
    from lm_eval.api.model import TemplateLM
except ModuleNotFoundError as error:
    raise ImportError(f"dynadapt.lm_eval needs the package lm-eval ({error}); in a checkout: pip install -e '.[lm-eval]'") from error
from lm_eval.api.registry import register_model
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from dynadapt.adapt.optimizers import IN_WORDS, WITH_STATISTICS
from dynadapt.engine.generation import generate, score_continuations
from dynadapt.experiments.config import ConfigError, EvalConfig
from dynadapt.experiments.defaults import settle
from dynadapt.experiments.dyneval import build_engine
from dynadapt.model import Tokenizer, load

from .generation_settings import check_defaults, check_request, end_ids, model_defaults, repetition_penalty
from .texts import text_task

__all__ = ["DynadaptLM", "text_task"]

logger = logging.getLogger(__name__)

POLICIES = {
    "stateless": "nothing learns",
    "document": "learns within each document, which starts from the loaded weights",
    "stream": "learns from document to document of a task, in the task's order",
}
ELSEWHERE = (
    *("model", "text", "field", "tokens", "streams", "split", "reset", "keep_a", "batch", "statistics"),
    *("guard", "rates", "halve", "levels", "slow_every", "slow_lr"),
)
MAX_LENGTH = 2048
HARNESS_DEVICE = "cuda:0"  # what the harness' command line sends when it was given no --device, GPU or none


@register_model("dynadapt")
class DynadaptLM(TemplateLM):
    """A dynadapt engine for the harness; see the module's text for what ``reset`` does.

    Args:
        model: what ``dynadapt.load`` takes: a name, a directory, a GGUF file, or a live transformers model.
        reset: "stateless", "document" or "stream".
        max_length: most tokens that a continuation is scored with, context included; by default what the model was made for,
            at most 2,048.
        max_gen_toks: most tokens generated where the task says nothing.
        add_bos_token: True begins contexts and documents with the tokenizer's beginning-of-text token, False does not; by
            default the tokenizer's post-processor says what stands around them.
        prefix_token_id: what stands before a text that has no context; by default the tokenizer's beginning-of-text token, or
            where it has none the end-of-text token.
        tokenizer: a ``dynadapt.model.Tokenizer`` for a model that came without one.
        device: as ``Engine``'s; "cuda:0" means "auto" where there is no GPU, because the harness asks for it unasked.
        settings: fields of ``EvalConfig``: adapt, rank, lr, segment, memory (here 0 where it is not given), optimizer, dtype, ...
    """

    made: list[DynadaptLM] = []  # for the command line, which prints their policies

    def __init__(
        self,
        model="smollm2-135m",
        reset: str = "document",
        max_length: int | None = None,
        max_gen_toks: int = 256,
        add_bos_token: bool | None = None,
        prefix_token_id: int | None = None,
        tokenizer=None,
        device: str = "auto",
        batch_size=1,
        max_batch_size=None,
        **settings,
    ):
        super().__init__()
        if reset not in POLICIES:
            raise ConfigError(f"reset={reset!r}: expected one of {', '.join(POLICIES)}")
        if str(batch_size) != "1" or max_batch_size not in (None, 1):
            raise ConfigError(f"batch_size={batch_size!r}: documents are read one after the other; expected 1")
        if add_bos_token not in (None, True, False):
            raise ConfigError(f"add_bos_token={add_bos_token!r}: expected True, False or None")
        if device == HARNESS_DEVICE and not torch.cuda.is_available():
            device = "auto"
        self.config, self.reset = _config(reset, {**settings, "device": device}), reset
        source = load(model)
        self.config = settle(self.config, source.config)
        self.tokenizer = tokenizer or source.tokenizer
        if self.tokenizer is None:
            raise ConfigError(f"model={model!r} has no tokenizer; put its tokenizer.json next to the weights, or give tokenizer")
        if not isinstance(self.tokenizer, Tokenizer):
            raise ConfigError(f"tokenizer is a {type(self.tokenizer).__name__}; expected a dynadapt.model.Tokenizer")
        self.generation = model_defaults(model)
        self.max_length = self._max_length(max_length, source.config)
        self.max_gen_toks, self.add_bos_token, self._prefix = max_gen_toks, add_bos_token, prefix_token_id
        self.engine = build_engine(source, replace(self.config, segment=self.max_length, bos="no"))
        self._device = self.engine.device
        self.made.append(self)

    def _max_length(self, wanted: int | None, model) -> int:
        c = self.config
        remembered = c.memory + c.sinks if c.memory else c.context
        most = model.max_positions - remembered
        length = min(MAX_LENGTH, most) if wanted is None else wanted
        if not isinstance(length, int) or length < 2 or length > most:
            raise ConfigError(f"max_length={wanted!r}: expected 2..{most}, which leaves room for {remembered} tokens of memory")
        if wanted is None and c.segment > length:
            self.config = replace(c, segment=length)
        elif c.segment > length:
            raise ConfigError(f"segment={c.segment} exceeds max_length={length}")
        return length

    # ---- what it is

    @property
    def policy(self) -> str:
        """The line that is printed with a score."""
        c = self.config
        how = "" if c.adapt == "none" else f"; {c.adapt}, {c.optimizer}, lr {c.learning_rate:g}, segments of {c.segment}"
        seen = f", memory {c.memory}" if c.memory else f", context {c.context}" if c.context else ""
        where = f"model {self.engine.model.name} in {c.dtype} on {self.engine.device}"
        return f"dynadapt: reset policy {self.reset} ({POLICIES[self.reset]}{how}{seen}), {where}"

    def get_model_info(self) -> dict:
        """What the harness keeps with its results."""
        plain = {f.name: getattr(self.config, f.name) for f in fields(EvalConfig) if f.name not in ELSEWHERE}
        return {
            "reset_policy": self.reset,
            "dynadapt": self.policy,
            "dynadapt_settings": plain,
            "model_fingerprint": self.engine.model.fingerprint(),
            "tokenizer_fingerprint": self.tokenizer.fingerprint(),
            "max_length": self.max_length,
        }

    def set_cache_hook(self, cache_hook) -> None:
        if self.reset != "stateless":
            raise ConfigError(f"use_cache with reset={self.reset!r}: a score depends on what was read before it; use reset='stateless'")
        super().set_cache_hook(cache_hook)

    @property
    def tokenizer_name(self) -> str:
        return self.engine.model.name

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """None: texts are scored as they are."""
        if chat_template:
            raise ConfigError(f"apply_chat_template={chat_template!r}: chat templates are not supported; expected False")
        return None

    @property
    def eot_token_id(self) -> int:
        token = self.tokenizer.special_ids.get("eos_token")
        if token is None:
            raise ConfigError("the tokenizer has no end-of-text token; give prefix_token_id")
        return token

    @property
    def prefix_token_id(self) -> int:
        if self._prefix is not None:
            return self._prefix
        begin = self.tokenizer.special_ids.get("bos_token")
        return self.eot_token_id if begin is None else begin

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, left_truncate_len: int | None = None, **kwargs) -> list[int]:
        """Token ids, at most the last ``left_truncate_len`` of them.

        Unless ``add_special_tokens`` says otherwise, with what the tokenizer puts around a text, or what ``add_bos_token``
        puts before it; not where the text spells the prefix token out.
        """
        if add_special_tokens is None and string.startswith(self.tokenizer.decode([self.prefix_token_id])):
            add_special_tokens = False
        ids = self._encode(string, add_special_tokens)
        return ids[-left_truncate_len:] if left_truncate_len else ids

    def _encode(self, string: str, add_special_tokens: bool | None) -> list[int]:
        if self.add_bos_token is None:
            return self.tokenizer.encode(string, add_special_tokens=add_special_tokens is not False)
        begin = self.tokenizer.special_ids.get("bos_token")
        begins = self.add_bos_token and add_special_tokens is not False and begin is not None
        return [begin] * begins + self.tokenizer.encode(string)

    def _prompt(self, string: str) -> list[int]:
        """Token ids of a text that generation goes on from."""
        begin = self.tokenizer.special_ids.get("bos_token")
        spelled = begin is not None and string.startswith(self.tokenizer.backend.id_to_token(begin))
        return self._encode(string, False if spelled else None)

    # ---- documents

    def _documents(self, requests, what: str, silent: bool):
        """The requests of one document after the other, in their order, with the engine where the policy wants it."""
        task = object()

        def key(numbered):
            number, request = numbered
            return request.task_name, number if request.doc_id is None else request.doc_id

        with tqdm(total=len(requests), desc=f"{what}, reset policy {self.reset}", disable=silent) as bar:
            for (name, _), group in groupby(enumerate(requests), key):
                if name != task:  # a task's scores do not depend on the tasks before it
                    self.engine.reset(0)
                    task = name
                self.engine.enter(0)
                group = [request for _, request in group]
                yield group
                bar.update(len(group))
        if not silent:
            print(self.policy, file=sys.stderr)

    def _read(self, tokens: list[int]) -> float:
        """Scores all but the first token, segment by segment, learning from each after it is scored; returns the NLL in nats."""
        total, width = 0.0, self.config.segment
        for start in range(0, len(tokens) - 1, width):
            row = torch.zeros(1, width + 1, dtype=torch.int64)
            part = torch.tensor(tokens[start : start + width + 1])
            row[0, : len(part)] = part
            nll = self.engine.step(row, [len(part) - 1])[0, : len(part) - 1].double().sum().item()
            if not math.isfinite(nll):
                raise RuntimeError(f"a score is not finite: adaptation diverged at lr {self.config.learning_rate:g}; take a smaller lr")
            total += nll
        return total

    def _learn(self, contexts: list[list[int]]) -> None:
        """Reads what all contexts of a document begin with; a context that is empty has no say."""
        known = commonprefix([context for context in contexts if context])
        if self.engine.learners and len(known) > 1:
            self._read(list(known))

    # ---- what the harness asks for

    def loglikelihood_rolling(self, requests, disable_tqdm: bool = False) -> list[float]:
        """Log-likelihoods in nats of whole documents, each after the prefix token."""
        score = self._windows if self._one_window else lambda tokens: -self._read([self.prefix_token_id, *tokens])
        return [
            self._kept("loglikelihood_rolling", request, score(self.tok_encode(request.args[0])))
            for group in self._documents(requests, "documents", disable_tqdm)
            for request in group
        ]

    @property
    def _one_window(self) -> bool:
        """Whether documents are scored in windows of the harness' own: nothing is learned, remembered or cut shorter."""
        c = self.config
        return c.adapt == "none" and not c.memory and not c.context and c.segment == self.max_length

    def _windows(self, tokens: list[int]) -> float:
        """The log-likelihood in windows of ``max_length``, the last of which has as much context as there is room for."""
        windows = get_rolling_token_windows(
            token_list=tokens, prefix_token=self.prefix_token_id, max_seq_len=self.max_length, context_len=1
        )
        pairs = map(make_disjoint_window, windows)
        return -sum(score_continuations(self.engine, [context + rest], [len(rest)])[0][0].double().sum().item() for context, rest in pairs)

    def loglikelihood(self, requests, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log-likelihood in nats, would be generated greedily) of continuations after their contexts."""
        answers = []
        for group in self._documents(requests, "continuations", disable_tqdm):
            pairs = [self._pair(*request.args) for request in group]
            self._learn([context for context, _ in pairs])
            rows = [self._row(context, continuation) for context, continuation in pairs]
            counts = [len(continuation) for _, continuation in pairs]
            for row, count in zip(rows, counts):
                if not 1 <= count < len(row):
                    raise ValueError(f"a continuation has {count} tokens; expected 1..{self.max_length} (max_length)")
            for request, (nll, greedy) in zip(group, score_continuations(self.engine, rows, counts)):
                answers.append(self._kept("loglikelihood", request, (-nll.double().sum().item(), bool(greedy.all()))))
        return answers

    def _pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        if not context:
            ids = self.tok_encode(continuation, add_special_tokens=False)
            return ([], ids) if ids[:1] != [self.prefix_token_id] else (ids[:1], ids[1:])
        return self._encode_pair(context, continuation)

    def _row(self, context: list[int], continuation: list[int]) -> list[int]:
        """Both together, cut on the left to what can be scored at once."""
        row = (context or [self.prefix_token_id]) + continuation
        if len(row) > self.max_length + 1:
            logger.warning(
                "a context of %d tokens and a continuation of %d exceed max_length=%d; the first %d are left out",
                len(context),
                len(continuation),
                self.max_length,
                len(row) - self.max_length - 1,
            )
        return row[-self.max_length - 1 :]

    def _loglikelihood_tokens(self, requests, **kwargs):
        raise NotImplementedError("requests are scored by document: call loglikelihood")

    def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
        """Greedy continuations up to a stop string; what is generated is not learned."""
        answers = []
        for group in self._documents(requests, "generations", disable_tqdm):
            contexts = [self._prompt(request.args[0]) for request in group]
            self._learn(contexts)
            for request, context in zip(group, contexts):
                answers.append(self._kept("generate_until", request, self._generate(context, dict(request.args[1]))))
        return answers

    def _generate(self, context: list[int], settings: dict) -> str:
        check_defaults(self.generation)
        settings = normalize_gen_kwargs(settings, self.max_gen_toks)
        check_request(settings)
        most, tokenizer = settings["max_gen_toks"], self.tokenizer
        if not 1 <= most < self.max_length:
            raise ConfigError(f"max_gen_toks={most}: expected 1 or more, less than max_length={self.max_length}")
        end = tokenizer.special_ids.get("eos_token")
        until = handle_stop_sequences(settings["until"], eos=None if end is None else tokenizer.decode([end]))
        ends = end_ids(self.generation, tokenizer.eos_id)
        # a stop string is looked for in as many last tokens as it may be spelled with
        spans = [(string, len(tokenizer.encode(string)) + 2) for string in until if string]

        def stop(ids):
            return ids[-1] in ends or any(string in tokenizer.decode(ids[-count:]) for string, count in spans)

        prompt = (context or [self.prefix_token_id])[-(self.max_length - most) :]
        ids = generate(self.engine, prompt, most, stop, repetition_penalty=repetition_penalty(self.generation, settings))
        return postprocess_generated_text(tokenizer.decode(ids, skip_special_tokens=True), until, None)

    def _kept(self, what: str, request, answer):
        """The answer, which the harness' cache takes as well where there is one."""
        self.cache_hook.add_partial(what, request.args, answer)
        return answer


def _config(reset: str, settings: dict) -> EvalConfig:
    accepted = [f.name for f in fields(EvalConfig) if f.name not in ELSEWHERE]
    for name in settings:
        if name not in accepted:
            raise ConfigError(f"{name}={settings[name]!r}: expected one of {', '.join(accepted)}")
    settings = {**settings, "adapt": settings.get("adapt", "lora") or "none"}  # the harness reads "none" as None
    if settings.get("optimizer") in WITH_STATISTICS:
        raise ConfigError(f"optimizer={settings['optimizer']!r} needs gradient statistics of a text of its own; expected {IN_WORDS}")
    if settings.get("select") == "contrast":
        raise ConfigError(f"select={settings['select']!r} needs gradient statistics of a text of its own; expected gradient or fixed")
    if reset == "stateless":
        settings["adapt"] = "none"
    return settle(EvalConfig(**settings, reset="document" if reset == "document" else "never"), None, memory=0)
