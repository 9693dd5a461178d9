"""One's own texts as a task of the harness."""

from __future__ import annotations

from collections.abc import Sequence

from datasets import Dataset
from lm_eval.api.task import ConfigurableTask

from dynadapt.runs.text import TextError, expand

METRICS = ("bits_per_byte", "byte_perplexity", "word_perplexity")


def text_task(texts: Sequence[str], name: str = "text", field: str = "text") -> ConfigurableTask:
    """A task that scores every document of `texts`, which are what `dynadapt eval --text` takes, whole.

        lm_eval.simple_evaluate(model=lm, tasks=[dynadapt.lm_eval.text_task(["reviews.jsonl"], field="body")])

    TextError for what can't be read. The documents are held in memory.
    """
    sources = expand(texts, field)
    if not sources:
        raise TextError("texts: none given; name files, directories or .jsonl files")
    documents = Dataset.from_list([{"name": source.name, "text": source.document()[1]} for source in sources])
    return ConfigurableTask(
        config={
            "task": name,
            "custom_dataset": lambda **settings: {"test": documents},
            "test_split": "test",
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": lambda document: document["text"],
            "metric_list": [{"metric": metric} for metric in METRICS],
        }
    )
