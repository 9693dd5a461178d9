"""An honest program for `dynadapt audit --command`: counts of the tokens seen so far, anew in each document.

dynadapt audit --command "python examples/audit/unigram.py 1000" --vocabulary 1000 --resets
"""

import json
import math
import sys

vocabulary = int(sys.argv[1])
for line in sys.stdin:
    request = json.loads(line)
    if request["start"] == 0:  # a new document: nothing of the old ones stays
        counts, total = [1] * vocabulary, vocabulary
    nll, logprobs = [], {}
    for position, token in enumerate(request["tokens"], request["start"]):
        if position in request["ask"]:
            logprobs[position] = [math.log(count / total) for count in counts]
        nll.append(-math.log(counts[token] / total))  # the score first
        counts[token], total = counts[token] + 1, total + 1  # and then the learning
    print(json.dumps({"nll": nll, "logprobs": logprobs}), flush=True)
