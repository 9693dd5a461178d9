"""A small adaptive program for `dynadapt audit --command`, honest or with one planted cheat or fault.

  python audited_program.py VOCABULARY KIND

Counts of tokens, learned from after each segment of 8, anew in each document. It needs nothing beside Python.
"""

import json
import math
import os
import random
import signal
import subprocess
import sys
import time

SEGMENT = 8


class Counts:
    def __init__(self, vocabulary):
        self.counts, self.total = [1.0] * vocabulary, float(vocabulary)
        self.pairs = {}

    def learn(self, tokens, before=None):
        for token in tokens:
            self.counts[token] += 1
            self.total += 1
            if before is not None:
                self.pairs[before] = token
            before = token

    def distribution(self, smoothing=0.0):
        total = self.total + smoothing * len(self.counts)
        return [(count + smoothing) / total for count in self.counts]


def mixed(p, token, share):
    """`share` of all probability to one token."""
    return [(1 - share) * x + share * (i == token) for i, x in enumerate(p)]


def scored(model, tokens, start, ask, kind, length):
    """(nll, logprobs) of a document's tokens from `start` on."""
    nll, logprobs = [], {}
    for begin in range(0, len(tokens), SEGMENT):
        segment = tokens[begin : begin + SEGMENT]
        before = tokens[begin - 1] if begin else None
        if kind == "after":
            model.learn(segment)
        pairs = {**model.pairs, **dict(zip([before, *segment], segment))} if kind == "peeking-cache" else model.pairs
        for at, token in enumerate(segment):
            position = start + begin + at
            smoothing = {"statistics": len(set(segment)), "length": length}.get(kind, 0.0)
            p = model.distribution(smoothing)
            previous = segment[at - 1] if at else before
            if "cache" in kind and previous in pairs:
                p = mixed(p, pairs[previous], 0.5)
            if kind == "own" or (kind == "own-unless-asked" and position not in ask):
                p = mixed(p, token, 0.3)
            score = -math.log(p[token])
            if kind == "better-than-stated":
                score *= 0.9
            if kind == "unnormalised":
                p, score = [1.2 * x for x in p], score - math.log(1.2)
            if kind == "negative":
                score = -0.5
            if kind == "noise":
                score += random.uniform(0, 1e-7)
            nll.append(score)
            if position in ask and kind != "no-distributions":
                logprobs[str(position)] = [math.log(x) for x in p]
        if kind == "hole" and begin:
            nll[begin] = None
        if kind != "after":
            model.learn(segment, before if "cache" in kind else None)
    if kind == "short-distribution":
        logprobs = {key: values[:-1] for key, values in logprobs.items()}
    return nll, logprobs


def faulty(kind, answer, number):
    """Some programs do not get far."""
    if number == 1:
        if kind == "hangs":
            subprocess.Popen(["sleep", "600"])
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(600)
        if kind == "dies":
            raise MemoryError("no room for the second document")
        if kind == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "stops":
            raise SystemExit(0)
        if kind == "garbage":
            print("loading weights: 100%")
        if kind == "nan":
            answer["nll"][3] = math.nan
        if kind == "many":
            answer["nll"].append(1.0)
        if kind == "few":
            answer["nll"].pop()
        if kind == "words":
            answer["nll"][2] = "2.5"
        if kind == "nowhere":
            answer.update(document=99, start=0)
        if kind == "elsewhere":
            answer["logprobs"] = {"900": [0.0]}
    return answer


def main(vocabulary, kind):
    model, texts = Counts(vocabulary), []
    lines = sys.stdin.readlines() if kind in ("backward", "waits") else sys.stdin
    if kind == "backward":
        texts = [json.loads(line)["tokens"] for line in lines]
    for number, line in enumerate(lines):
        request = json.loads(line)
        if request["start"] == 0 and kind != "leak":
            model = Counts(vocabulary)
        if kind == "backward" and number + 1 < len(texts):
            model.learn(texts[number + 1])
        tokens, start = request["tokens"], request["start"]
        nll, logprobs = scored(model, tokens, start, request["ask"], kind, len(tokens))
        if kind == "twice":
            again = scored(Counts(vocabulary), tokens[4:], start + 4, [], kind, len(tokens))[0]
            where = {"document": request["document"]}
            print(json.dumps({**where, "start": start, "nll": nll, "logprobs": logprobs}), flush=True)
            print(json.dumps({**where, "start": start + 4, "nll": again}), flush=True)
            continue
        print(json.dumps(faulty(kind, {"nll": nll, "logprobs": logprobs}, number)), flush=True)
    if kind == "chatty":
        print(json.dumps({"nll": [1.0]}), flush=True)
    if kind == "fails-at-its-end":
        raise SystemExit(3)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
