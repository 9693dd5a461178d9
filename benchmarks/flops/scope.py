"""What the small grid's verdicts are about, claim by claim: what was tested, what not, and what would change the verdict."""

from __future__ import annotations

KEPT = ("smollm2-135m", 4096)  # model and scored tokens of benchmarks/results/flops-vs-loss.json

SCOPE = {
    "1": "At 4,096 tokens of a stream, one model. The gain grows along a stream, on eight texts to 131,072 tokens (`benchmarks/results/long-streams.json`).",
    "2": "In the mean memory is within 0.016 nats of overlapping windows for every pair and text; intervals reach to 0.030, and the margin was 0.01. Memories "
    "of more than 1,536 were not tried.",
    "3a": "With `every` k only an eighth of the text is learned from at k = 8, so that frequency and the amount learned from move together; updates on "
    "accumulated gradients were not tried.",
    "3b": "The rule compares point estimates, without intervals, and the static side stops at windows of 2,048 and a memory of 1,536 where the model's "
    "positions reach 8,192: longer static context, which may be better and cheaper, was not tested. FLOPs of attention are counted over the whole "
    "rectangle of queries and keys, which charges long windows most. So nothing is decided either way.",
    "4": "Refuted as the rule has it: without memory, each at its own default rate. The rates were found on grids of different steps (2 for LoRA, 3 for full), "
    "and with a memory of 512 full adaptation is ahead on the novels (by 0.007 nats in the mean, from the rows of claim 1) and in the table of "
    "[results.md](results.md) (2.266 against 2.279). Equal grids and longer streams may change it. That LoRA learns in a fraction of the memory holds.",
    "5": "Refuted for streams of 4,096 tokens only. The gain of learning grows along a stream. On eight other texts, with rules of their own "
    "(`benchmarks/results/long-streams.json`, [results.md](results.md)): with a memory of 512 LoRA beats a static memory of 1,536 over 16,384 tokens (by 0.076 nats) and "
    "65,536 (by 0.180), confirmed; without memory it is refuted over 4,096 and not decided over 65,536.",
    "6a": "Nine domains decide nothing but a strong correlation, and units are mixed: the gain is in nats a token, the shift in bits a byte. Shift within one "
    "language is in [results.md](results.md): weakly positive (`benchmarks/results/shift.json`).",
    "6b": "On three of four texts; one model, one amount of fine-tuning.",
    "7": "What is confirmed is that each adds to the other: both together are better than either alone. They do not add up: together they gain 81% to 87% of the sum. On "
    "code, tokens that are new in the text lose by learning (0.135 and 0.087 nats), and with memory they are where they were.",
}
VERDICTS = {  # narrower than the rule's word, where the scope has to be in it
    "4": "refuted without memory, at these rates; with memory not decided",
    "5": "refuted at 4,096 tokens of a stream; with memory, from 16,384 tokens on, confirmed",
    "7": "confirmed that each adds; together 81% to 87% of the sum",
}
LEAD = """\
**What stands out at this scale** (`benchmarks/results/flops-vs-loss.json`). Learning gains on every text and in every form, most where text repeats itself (claim 1, 7). But a longer
context gains more, and far more cheaply: with a memory of 1,536 tokens the static model is ahead of LoRA without memory on every text, and of LoRA
with a memory of 512 on all but the novels; LoRA with the same memory is ahead of it on all four (claims 3b, 5; 0.89 GFLOP per token against
0.38). Memory takes 1.7 to 3 times fewer FLOPs than overlapping windows of the same reach and scores within 0.02 nats of them (claim 2). LoRA of rank 16 scores no worse than full adaptation, each at its default rate
(claim 4): on texts of 4,096 tokens full adaptation at 1e-4 takes eight small steps, and this says nothing about long texts. Rank 64 keeps the
rate measured for rank 16, which is too high for it on three texts. The gain follows repetition rather than distance from the model: C++
headers gain as much as German manual pages (claim 6a). On code, fine-tuning on 8,192 tokens of other code made the static score worse (claim 6b).

**Limits.** One model of 135 million parameters, 4,096 tokens a text, one seed, learning rates that were measured on other texts. Intervals
are over blocks of one text, and say nothing about other texts. `--full` (65,536 tokens a text, more ranks and densities) has not been run.
"""
