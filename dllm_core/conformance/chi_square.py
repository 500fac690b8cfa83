"""Do samples fit a law? With a fixed seed the answer is the same for good.

Shapes: N samples, L length.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor

from dllm_core.conformance.expect import expect

Text = tuple[int, ...]


def expect_fit(samples: Tensor, law: Mapping[Text, float], *, chance: float = 1e-4) -> None:
    """Pearson's chi-square test of rows (N, L) against the probability of every possible row.

    Rows that are expected fewer than five times are counted together.

    Raises:
        AssertionError: a row has probability 0, or so poor a fit comes up with less than that chance.
    """
    counts = Counter(tuple(row) for row in samples.tolist())
    impossible = [text for text in counts if not law.get(text)]
    expect(not impossible, f"samples hold {impossible[:1]}, whose probability is 0; draw what the model says")
    expected = {text: p * len(samples) for text, p in law.items()}
    cells = [text for text, number in expected.items() if number >= 5]
    pairs = [(counts[text], expected[text]) for text in cells]
    rare = len(samples) - sum(number for _, number in pairs)
    if rare >= 5:
        pairs.append((len(samples) - sum(seen for seen, _ in pairs), rare))
    statistic = sum((seen - number) ** 2 / number for seen, number in pairs)
    freedom = len(pairs) - 1
    p_value = float(torch.special.gammaincc(torch.tensor(freedom / 2), torch.tensor(statistic / 2)))
    worst = max(cells, key=lambda text: (counts[text] - expected[text]) ** 2 / expected[text])
    expect(
        p_value > chance,
        f"chi-square {statistic:.1f} at {freedom} degrees of freedom (p = {p_value:.1g}): {worst} came up "
        f"{counts[worst]} times instead of {expected[worst]:.1f}; draw each token from softmax(logits / temperature)",
    )
