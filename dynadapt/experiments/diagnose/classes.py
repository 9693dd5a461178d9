"""Token classes: each token type is in exactly one, the first that fits."""

from __future__ import annotations

import numpy as np

CLASSES = ("newline and whitespace", "punctuation", "digits", "function words", "domain keywords", "rare", "other")

# English words that carry grammar rather than topic: articles, pronouns, prepositions, conjunctions, auxiliaries.
FUNCTION_WORDS = frozenset(
    """
a an the this that these those some any no every each either neither both all such another other
i me my mine myself you your yours yourself yourselves he him his himself she her hers herself it its itself we us our ours
ourselves they them their theirs themselves who whom whose which what whoever whatever one oneself
someone anyone something anything nothing everything
about above across after against along among around as at before behind below beneath beside between beyond but by despite down
during except for from in inside into like near of off on onto out outside over past per since through throughout till to toward
towards under until up upon via with within without
and or nor so yet if then else than because although though while whereas unless whether when whenever where wherever why how
am is are was were be been being do does did doing done have has had having will would shall should can could may might must ought
not n't 's 're 've 'll 'd 'm there here also too very just only even still again already more most less least much many few
""".split()
)

KEYWORD_Z = 3.0  # standard errors that a keyword's log-odds must exceed
KEYWORD_COUNT = 3  # times it must occur in the text
KEYWORD_LETTERS = 3  # a shorter piece is no word
RARE = 2  # a type that occurs at most so often in the text is rare


def token_texts(tokenizer, types: np.ndarray) -> list[str]:
    """What each token type reads as; a piece of a character that is no text by itself reads as U+FFFD."""
    return [tokenizer.decode([int(token)], skip_special_tokens=False) for token in types]


def visible(text: str) -> str:
    """A token as a person can read it: spaces, line ends and tabs show."""
    shown = text.replace(" ", "␣").replace("\r", "␍").replace("\n", "⏎").replace("\t", "⇥")
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in shown) or "(empty)"


def keywords(text: np.ndarray, reference: np.ndarray, vocabulary: int) -> np.ndarray:
    """[V] bool: types that the text uses more than the reference does.

    Log-odds ratio with an informative Dirichlet prior, the two texts together (Monroe, Colaresi and Quinn 2008, eq. 15
    to 22): z = (log-odds in text - log-odds in reference) / its standard error.
    """
    ours, theirs = (np.bincount(ids, minlength=vocabulary).astype(np.float64) for ids in (text, reference))
    prior = ours + theirs + 1e-9
    prior *= min(len(text), len(reference)) / prior.sum()
    odds = [np.log((c + prior) / (c.sum() + prior.sum() - c - prior)) for c in (ours, theirs)]
    z = (odds[0] - odds[1]) / np.sqrt(1 / (ours + prior) + 1 / (theirs + prior))
    return (z > KEYWORD_Z) & (ours >= KEYWORD_COUNT)


def classify(texts: list[str], counts: np.ndarray, keyword: np.ndarray | None) -> np.ndarray:
    """[types] index into CLASSES, from what a type reads as, how often it occurs and whether it is a keyword."""
    classes = np.zeros(len(texts), np.int64)
    for i, text in enumerate(texts):
        classes[i] = CLASSES.index(_class_of(text.strip(), int(counts[i]), keyword is not None and bool(keyword[i])))
    return classes


def _class_of(word: str, count: int, keyword: bool) -> str:
    if not word:
        return "newline and whitespace"
    if not any(c.isalnum() or c == "\ufffd" for c in word):
        return "punctuation"
    if not any(c.isalpha() or c == "\ufffd" for c in word):
        return "digits"
    if word.lower() in FUNCTION_WORDS:
        return "function words"
    if keyword and len(word) >= KEYWORD_LETTERS:
        return "domain keywords"
    return "rare" if count <= RARE else "other"
