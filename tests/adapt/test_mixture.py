"""The mixture's bound holds on every text, for experts as bad as an adversary makes them, and the scan is the recursion it stands for."""

import math
import random
from decimal import Decimal, getcontext

import pytest
import torch

from dynadapt.adapt.guard import Guard, as_guard
from dynadapt.adapt.mixture import Mixture, fixed_share, regret, rounding
from dynadapt.adapt.resets import ALARM, Alarms

SHARES = (1e-6, 1e-4, 0.03, 0.5)
NATS = math.log(256)


def plain(losses: list[list[float]], share: float) -> list[Decimal]:
    """Fixed share as it is written, token by token, with 60 digits."""
    getcontext().prec = 60
    count, a = len(losses[0]), Decimal(share)
    weights, scores = [Decimal(1) / count] * count, []
    for token in losses:
        likelihood = [(-Decimal(loss)).exp() if math.isfinite(loss) else Decimal(0) for loss in token]
        p = sum(w * x for w, x in zip(weights, likelihood))
        if p == 0:
            scores.append(Decimal("Infinity"))
            continue
        scores.append(-p.ln())
        v = [w * x / p for w, x in zip(weights, likelihood)]
        weights = [(1 - a) * x + (a / (count - 1) * (1 - x) if count > 1 else 0) for x in v]
    return scores


def mixed(losses: torch.Tensor, share: float, segment: int) -> torch.Tensor:
    """[n] of losses [n, K], segment by segment."""
    mixture, scores = Mixture(1, losses.shape[1], share), []
    for part in losses.double().split(segment):
        score, _ = mixture.mix([0], [each[None] for each in part.unbind(1)], [len(part)])
        scores.append(score[0])
    assert mixture.tokens == [len(losses)]
    assert mixture.bound(0) == regret(len(losses), losses.shape[1], share)
    return torch.cat(scores)


def slack(losses: torch.Tensor, share: float, segment: int) -> float:
    """What rounding may add over all segments, and in the sums of this test."""
    count, total = losses.shape[1], 0.0
    for part in losses.double().split(segment):
        finite = torch.isfinite(part)
        high, low = torch.where(finite, part, -math.inf).amax(1), torch.where(finite, part, math.inf).amin(1)
        spread = torch.where(finite.any(1), high - low, 0.0).sum().item()
        total += rounding(len(part), count, spread + len(part) * math.log(max(2, count - 1) / share))
    return total + len(losses) * 2.0**-52 * losses[torch.isfinite(losses)].abs().sum().item()


def check_bound(losses: torch.Tensor, share: float, segment: int, sequences=()) -> None:
    """Against every expert, and sequences of experts that change."""
    n, count = losses.shape
    total = math.fsum(mixed(losses, share, segment).tolist())
    allowed = slack(losses, share, segment)
    experts = losses.double().nan_to_num(nan=math.inf, posinf=math.inf, neginf=math.inf)
    for path in [[i] * n for i in range(count)] + list(sequences):
        of = math.fsum(experts[torch.arange(n), torch.tensor(path)].tolist())
        switches = sum(a != b for a, b in zip(path, path[1:]))
        assert math.isinf(of) or total <= of + regret(n, count, share, switches) + allowed, (share, segment, switches)


def losses_of_logits(n: int, experts: int, seed: int, scale: float) -> torch.Tensor:
    """[n, K]: what experts with random logits over 64 tokens score of a random text."""
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(n, experts, 64, generator=generator, dtype=torch.float64)
    tokens = torch.randint(64, (n, 1, 1), generator=generator).expand(n, experts, 1)
    return -torch.log_softmax(logits, 2).gather(2, tokens)[..., 0]


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("experts", [2, 5])
def test_it_is_the_recursion(share, experts):
    losses = losses_of_logits(41, experts, 3, 4.0)
    losses[7, 0], losses[8, 1], losses[20, 0] = math.nan, math.inf, -math.inf
    expected = [float(score) for score in plain(losses.tolist(), share)]
    for segment in (1, 6, 41):
        torch.testing.assert_close(mixed(losses, share, segment), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)


def test_one_expert_is_itself():
    losses = losses_of_logits(20, 1, 0, 2.0)
    torch.testing.assert_close(mixed(losses, 1e-4, 7), losses[:, 0], rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("share", SHARES)
def test_random_texts(share):
    for seed in range(6):
        rng = random.Random(seed)
        check_bound(losses_of_logits(300, rng.choice([2, 3, 6]), seed, rng.choice([0.1, 3.0, 40.0])), share, rng.choice([1, 17, 128, 300]))


@pytest.mark.parametrize("share", SHARES)
def test_spliced_domains_and_their_best_sequence(share):
    """The best expert changes at each splice; the sequence that knows the splices pays for each change."""
    n, parts = 400, 5
    owner = [(t * parts // n) % 3 for t in range(n)]
    losses = losses_of_logits(n, 3, 1, 1.0) + 4.0
    losses[torch.arange(n), torch.tensor(owner)] -= 3.0
    check_bound(losses, share, 64, [owner])
    if share >= 1e-4:
        total = mixed(losses, share, 64).sum()
        assert total < losses.sum(0).min() - 100, "with shares it follows the splices, which no single expert does"


@pytest.mark.parametrize("share", SHARES)
def test_scores_that_are_no_numbers(share):
    """Of one expert: as if it had no probability. Of all: the mixture's is none either, and the weights stay."""
    losses = losses_of_logits(200, 2, 5, 2.0)
    for t in range(20, 200, 3):
        losses[t, 1] = [math.nan, math.inf, -math.inf][t % 3]
    assert torch.isfinite(mixed(losses, share, 50)).all()
    check_bound(losses, share, 50)
    losses[100:, 1] = math.nan  # diverged for good
    check_bound(losses, share, 50)
    gone = torch.cat([losses[:60], torch.full((1, 2), math.nan, dtype=torch.float64), losses[60:]])
    scores = mixed(gone, share, 50)
    assert not torch.isfinite(scores[60])
    torch.testing.assert_close(torch.cat([scores[:60], scores[61:]]), mixed(losses, share, 50), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("size", [0.7, 12.0, 3e3])
def test_an_adversary_that_knows_the_weights(share, size):
    """Each token the expert that counts most is made the worse one, which no sequence of tokens can do better than."""
    mixture, rows, scores = Mixture(1, 2, share), [], []
    for _ in range(400):
        leader = int(mixture.log_weights[0].argmax())
        row = torch.tensor([[size, 0.1]] if leader == 0 else [[0.1, size]], dtype=torch.float64)
        score, _ = mixture.mix([0], [row[:, :1], row[:, 1:]], [1])
        rows.append(row), scores.append(score[0])
    losses = torch.cat(rows)
    assert torch.equal(torch.cat(scores), mixed(losses, share, 1))
    best = losses.argmin(1).tolist()
    check_bound(losses, share, 1, [best])
    check_bound(losses, share, 64, [best])


def test_no_smaller_bound_holds():
    """Two experts of which one gives no probability at all: the mixture is above the other by the bound itself."""
    losses = torch.tensor([[NATS, math.inf]] * 500, dtype=torch.float64)
    total = mixed(losses, 1e-3, 100).sum().item()
    assert total - 500 * NATS == pytest.approx(regret(500, 2, 1e-3), abs=1e-9)
    assert regret(500, 2, 1e-3) == pytest.approx(math.log(2) + 499 * 0.0010005, abs=1e-3)
    assert regret(0, 2, 1e-3) == 0.0


def test_weights_know_nothing_of_what_comes():
    """Changing losses from token t on leaves scores before t as they are, and the weight of t, to the bit, whatever the segment's length."""
    losses = losses_of_logits(70, 3, 9, 2.0)[None]
    start, everything = torch.full((1, 3), -math.log(3), dtype=torch.float64), torch.ones(1, 70, dtype=torch.bool)
    scores, _ = fixed_share(start, losses, everything, 1e-3)
    for t in (1, 2, 31, 64, 69):
        changed = losses.clone()
        changed[:, t:] = 77.0
        assert torch.equal(fixed_share(start, changed, everything, 1e-3)[0][:, :t], scores[:, :t])
        assert torch.equal(fixed_share(start, losses[:, :t], everything[:, :t], 1e-3)[0], scores[:, :t])


@pytest.mark.parametrize("experts", [2, 3, 7])
def test_rows_are_alone_and_padding_moves_nothing(experts):
    losses, mixture = losses_of_logits(3 * 30, experts, 4, 3.0).view(3, 30, experts), Mixture(4, experts, 1e-2)
    lengths = [30, 0, 11]
    score, counted = mixture.mix([3, 0, 1], list(losses.unbind(2)), lengths)
    assert counted.sum(1).tolist() == lengths
    assert mixture.tokens == [0, 11, 0, 30]
    for row, (stream, n) in enumerate(zip([3, 0, 1], lengths)):
        alone = Mixture(1, experts, 1e-2)
        if n:
            expected, _ = alone.mix([0], [each[row : row + 1, :n] for each in losses.unbind(2)], [n])
            assert torch.equal(score[row, :n], expected[0])
        assert not score[row, n:].any()
        assert torch.equal(mixture.log_weights[stream], alone.log_weights[0])
    assert mixture.weights(2).tolist() == pytest.approx([1 / experts] * experts)
    other = Mixture(4, experts, 1e-2)
    other.load(mixture.tensors())
    assert torch.equal(other.log_weights, mixture.log_weights) and other.tokens == mixture.tokens
    other.slot_load(2, mixture.slot_copy(3))
    assert torch.equal(other.log_weights[2], mixture.log_weights[3]) and other.tokens[2] == 30
    other.enter(2)
    assert other.tokens[2] == 0 and torch.equal(other.log_weights[2], mixture.log_weights[2])


def test_guards_by_words():
    assert as_guard("exact") == Guard(1) == as_guard(1) == as_guard(Guard)
    assert as_guard(8) == Guard(every=8) and as_guard(None) is None
    for wrong in ("always", 0, -1, 2.5, True):
        with pytest.raises(ValueError, match='guard=.*expected "exact"'):
            as_guard(wrong)
    for share in (0.0, 0.6, math.nan, -1e-4):
        with pytest.raises(ValueError, match="share=.*0 < share <= 0.5"):
            Guard(share=share)


def test_false_alarms_are_as_rare_as_promised():
    """Texts drawn from the adapted model's own probabilities, with a prior that is other: n segments alarm with at most n exp(-ALARM)."""
    generator = torch.Generator().manual_seed(0)
    streams, segments, width = 400, 40, 16
    alarms, fired = Alarms(streams), 0
    for _ in range(segments):
        adapted, prior = (torch.log_softmax(torch.randn(streams, width, 8, generator=generator), 2) for _ in range(2))
        tokens = torch.multinomial(adapted.exp().view(-1, 8), 1, generator=generator).view(streams, width, 1)
        losses = [-table.gather(2, tokens)[..., 0] for table in (prior, adapted)]
        fired += len(alarms.observe(range(streams), *losses))
    assert fired <= 4 * streams * segments * math.exp(-ALARM), fired
    for _ in range(20):
        fired += len(alarms.observe(range(streams), losses[1], losses[0] + 0.1))
    assert fired > streams, "a text that the prior predicts better fires in every stream"
