"""A flow small enough to write down: every text on its way, its probability, and the exact rate of every edit.

Columns turn independently with probability kappa, so a text's probability is a sum of kappa^d (1 - kappa)^r over the
ways to be it with d columns turned and r not. The exact rate of an edit (without w) is the same sum over the ways in
which that edit is still to be made, divided by the text's probability.

Shapes: S texts, L tokens, V tokens of the vocabulary, R rows.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import torch
from dllm_editflow.kinds import BLANK, DELETE, INSERT, SUBSTITUTE
from dllm_editflow.models.heads import EditStates

from dllm_core.errors import DataError

START, VOCAB = 0, 4  # the first token of every text; the mask is the last token
PAIRS = [  # source columns, target columns, probability
    ([BLANK, BLANK], [1, 2], 0.25),
    ([BLANK], [1], 0.15),
    ([1], [2], 0.2),
    ([2, 1], [BLANK, 1], 0.1),
    ([1, 2, BLANK], [2, 2, 1], 0.2),
    ([2], [BLANK], 0.1),
]
SAME = torch.nn.Linear(VOCAB, VOCAB, bias=False, dtype=torch.float64).requires_grad_(False)  # what goes in comes out
SAME.weight.data = torch.eye(VOCAB, dtype=torch.float64)
Text = tuple[int, ...]
Edit = tuple[int, int, int]  # row, kind, token


def text_of(columns: tuple[int, ...]) -> Text:
    return (START, *(token for token in columns if token != BLANK))


def ways(pairs=PAIRS) -> Iterator[tuple[float, tuple[bool, ...], tuple[int, ...], list, list]]:
    """Every pair with every choice of turned columns: probability, which are turned, what is shown, the pair."""
    for source, target, probability in pairs:
        for turned in itertools.product((False, True), repeat=len(source)):
            shown = tuple(b if t else a for a, b, t in zip(source, target, turned, strict=True))
            yield probability, turned, shown, source, target


def edit_to(shown: tuple[int, ...], column: int, target: int) -> Edit:
    """The edit that makes a column show the target."""
    row = sum(token != BLANK for token in shown[: column + 1])  # behind the start
    if shown[column] == BLANK:
        return row, INSERT, target
    return (row, DELETE, START) if target == BLANK else (row, SUBSTITUTE, target)


class Flow:
    """The exact flow of the pairs."""

    def __init__(self, pairs=PAIRS) -> None:
        self.pairs = pairs
        self.texts = sorted({text_of(shown) for _, _, shown, _, _ in ways(pairs)})
        self.index = {text: number for number, text in enumerate(self.texts)}

    def marginal(self, kappa: float) -> np.ndarray:
        """(S,) the probability of every text."""
        found = np.zeros(len(self.texts))
        for probability, turned, shown, _, _ in ways(self.pairs):
            found[self.index[text_of(shown)]] += probability * _chance(turned, kappa)
        return found

    def rates(self, kappa: float) -> dict[tuple[Text, Edit], float]:
        """The rate of every labelled edit of every text, without w; at 0 its limit."""
        kappa = max(kappa, 1e-9)
        open_: dict[tuple[Text, Edit], float] = defaultdict(float)
        for probability, turned, shown, source, target in ways(self.pairs):
            chance = probability * _chance(turned, kappa)
            for column, done in enumerate(turned):
                if not done and source[column] != target[column]:
                    open_[text_of(shown), edit_to(shown, column, target[column])] += chance
        marginal = self.marginal(kappa)
        return {key: chance / marginal[self.index[key[0]]] for key, chance in open_.items()}

    def generator(self, kappa: float) -> np.ndarray:
        """(S, S) rates from text to text, rows sum to 0."""
        found = np.zeros((len(self.texts),) * 2)
        for (text, edit), rate in self.rates(kappa).items():
            found[self.index[text], self.index[applied(text, edit)]] += rate
        return _without_net(found)

    def reverse(self, kappa: float) -> np.ndarray:
        """(S, S) rates of the reversed flow in units of kappa' / kappa, from the columns that have turned."""
        found = np.zeros((len(self.texts),) * 2)
        marginal = self.marginal(kappa)
        for probability, turned, shown, source, target in ways(self.pairs):
            chance = probability * _chance(turned, kappa)
            for column, done in enumerate(turned):
                if done and source[column] != target[column]:
                    before = (*shown[:column], source[column], *shown[column + 1 :])
                    here, there = self.index[text_of(shown)], self.index[text_of(before)]
                    found[here, there] += chance / marginal[here]
        return _without_net(found)

    def drawn(self, marginal: np.ndarray, count: int, seed: int) -> list[list[int]]:
        """Texts drawn from a distribution over them."""
        numbers = np.random.default_rng(seed).choice(len(self.texts), size=count, p=marginal / marginal.sum())
        return [list(self.texts[number]) for number in numbers]

    def histogram(self, ids: torch.Tensor, lengths: torch.Tensor) -> np.ndarray:
        """(S,) how often each text is there. Raises DataError for a text that the flow does not have."""
        counts = np.zeros(len(self.texts))
        rows = ids.where(torch.arange(ids.shape[1]) < lengths[:, None], VOCAB)
        for row, count in zip(*(each.tolist() for each in rows.unique(dim=0, return_counts=True)), strict=True):
            text = tuple(token for token in row if token != VOCAB)
            if text not in self.index:
                raise DataError(f"{text} is no text of the flow")
            counts[self.index[text]] += count
        return counts / counts.sum()


def _chance(turned: tuple[bool, ...], kappa: float) -> float:
    return kappa ** sum(turned) * (1 - kappa) ** (len(turned) - sum(turned))


def _without_net(rates: np.ndarray) -> np.ndarray:
    np.fill_diagonal(rates, 0)
    np.fill_diagonal(rates, -rates.sum(1))
    return rates


def applied(text: Text, edit: Edit) -> Text:
    row, kind, token = edit
    if kind == INSERT:
        return (*text[: row + 1], token, *text[row + 1 :])
    return (*text[:row], *([token] if kind == SUBSTITUTE else []), *text[row + 1 :])


class Table:
    """The exact model: what it says of each text at one kappa."""

    def __init__(self, flow: Flow, kappa: float) -> None:
        longest = max(map(len, flow.texts))
        self.rates = torch.zeros(VOCAB ** (longest + 1), longest + 1, 3, dtype=torch.float64)
        self.shares = torch.full((VOCAB ** (longest + 1), longest + 1, 2, VOCAB), -60.0, dtype=torch.float64)
        tokens: dict[tuple[int, int, int], list[tuple[int, float]]] = defaultdict(list)
        for (text, (row, kind, token)), rate in flow.rates(kappa).items():
            place = code(torch.tensor([text]), torch.tensor([len(text)]))[0].item()
            self.rates[place, row, kind] += rate
            if kind != DELETE:
                tokens[place, row, int(kind == INSERT)].append((token, rate))
        for (place, row, which), found in tokens.items():
            for token, rate in found:
                self.shares[place, row, which, token] = np.log(rate)

    def states(self, ids: torch.Tensor, lengths: torch.Tensor) -> EditStates:
        """What a model hands to a reader."""
        where = code(ids, lengths)
        width = ids.shape[1]
        rates, shares = self.rates[where, :width], self.shares[where, :width]
        return EditStates(rates, shares[:, :, 0], shares[:, :, 1], SAME, SAME)


def code(ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """A number for each text (R, L); tokens 1 and up are its digits."""
    real = torch.arange(ids.shape[1]) < lengths[:, None]
    return (ids.masked_fill(~real, 0) * VOCAB ** torch.arange(ids.shape[1])).sum(1)


def pushed(flow: Flow, start: np.ndarray, kappas: np.ndarray) -> np.ndarray:
    """The distribution that the rates make of ``start``, by Runge-Kutta in the clock -log(1 - kappa)."""
    probability = start
    for now, then in itertools.pairwise(kappas):
        clock = -np.log1p(-np.array([now, then]))
        step, middle = clock[1] - clock[0], -np.expm1(-clock.mean())
        first, half, last = (flow.generator(kappa).T for kappa in (now, middle, then))
        a = first @ probability
        b = half @ (probability + step / 2 * a)
        c = half @ (probability + step / 2 * b)
        d = last @ (probability + step * c)
        probability = probability + step / 6 * (a + 2 * b + 2 * c + d)
    return probability


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """Total variation."""
    return float(np.abs(one - other).sum() / 2)
