"""A model whose posterior is known exactly: samplers and objectives are checked against enumeration, not against code.

For a joint distribution small enough to hold as a table, the ideal denoiser answers with the exact conditional
marginals ``p(x_i = v | the tokens that are not masked)``. With it the any-order bound of masked diffusion is tight: the
expected loss over times and masks equals the entropy of the data (Ou et al., arXiv:2406.03736: the loss is the
any-order autoregressive one), and one-token-at-a-time sampling draws from the joint itself.

Shapes: B batch, L columns of the input, D length of the joint, V data tokens (the mask token is id V), S = V^D states.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedConfig, PreTrainedTokenizer

from dllm_core.models.adapter import ModelAdapter
from dllm_core.models.denoiser import Denoiser


@dataclass(frozen=True)
class ToyOutput:
    """What a Hugging Face model returns, as far as `Denoiser` reads it: logits (B, L, V + 1) or the rows selected."""

    logits: Tensor


class ExactModel(nn.Module):
    """The ideal denoiser of a joint distribution, in the shape of a Hugging Face model.

    The final hidden state is the log posterior and the vocabulary head starts as the identity, so rows can be selected
    before the head as in any model, and the head's weight receives gradients.

    A column that is not attended to, and an axis of the joint that no column stands for, are summed out. Where a
    position is not masked its own token is left out of the evidence, so the scores stay finite and informative. The
    mask token, and tokens of probability zero, score `log_zero`. Attention has one layer: a column knows the tokens
    that its own pattern shows it, so under a block-causal pattern the answers are exact too.

    Args:
        joint: (V,) * D probabilities, sum 1; axis i is position i.
        shifted: column i scores the token at column i + 1, as in models with an autoregressive heritage.
    """

    log_zero = -60.0  # finite, so that noise and guidance never meet inf - inf; e^-60 is nothing beside real mass

    def __init__(self, joint: Tensor, *, shifted: bool = False) -> None:
        super().__init__()
        self.vocab, self.length, self.shifted = joint.shape[0], joint.dim(), shifted
        states = torch.cartesian_prod(*[torch.arange(self.vocab)] * self.length).reshape(-1, self.length)
        self.register_buffer("states", states)  # (S, D)
        self.register_buffer("probabilities", joint.reshape(-1))  # (S,)
        self.embedding = nn.Embedding(self.vocab + 1, 1)
        self.head = nn.Linear(self.vocab + 1, self.vocab + 1, bias=False)
        nn.init.eye_(self.head.weight)
        one = dict.fromkeys(("num_hidden_layers", "num_attention_heads", "hidden_size"), 1)  # of what a cache keeps
        self.config = PreTrainedConfig(max_position_embeddings=self.length, **one)
        self.to(joint.dtype)

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
    ) -> ToyOutput:
        """Scores of the token at every column.

        Args:
            input_ids: (B, L) int64.
            attention_mask: (B, L) bool, or (B or 1, 1, L, K) bool: which keys each column may look at.
            position_ids: (B or 1, L) int64, the axis that each column stands for; None: 0, 1, ...
            past_key_values: keeps the axes as keys and the tokens as values of one layer with one head.
            use_cache: as Hugging Face models take it; without ``past_key_values`` nothing is kept.

        Raises:
            ValueError: the input is longer than the joint.
        """
        if position_ids is None and input_ids.shape[1] > self.length:
            raise ValueError(f"the toy knows {self.length} positions, got an input of length {input_ids.shape[1]}")
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        axes = position_ids.expand_as(input_ids).clamp(0, self.length - 1)
        keys, tokens = self._keys(axes, input_ids, past_key_values)  # (B, K) each
        visible = (tokens != self.vocab)[:, None].expand(-1, input_ids.shape[1], -1)  # (B, L, K)
        if attention_mask is not None:
            pattern = attention_mask[:, None] if attention_mask.dim() == 2 else attention_mask[:, 0]
            visible = visible & pattern.bool()
        own = (axes + self.shifted) % self.length  # the last column of a shifted model has nothing to score
        rows = self._posteriors(self._evidence(keys, tokens, visible), own)  # (B, L, V)
        hidden = rows.log().clamp_min(self.log_zero)
        return ToyOutput(self.head(nn.functional.pad(hidden, (0, 1), value=self.log_zero)))

    def _keys(self, axes: Tensor, input_ids: Tensor, cache: Cache | None) -> tuple[Tensor, Tensor]:
        """Axes and tokens of everything that a column may look at: (B, L), or what the cache hands out."""
        if cache is None:
            return axes, input_ids
        states = (each[:, None, :, None].to(self.probabilities) for each in (axes, input_ids))  # (B, 1, L, 1)
        return tuple(each[:, 0, :, 0].round().long() for each in cache.update(*states, 0))

    def _evidence(self, keys: Tensor, tokens: Tensor, visible: Tensor) -> Tensor:
        """(B, L, D) int64: for every column the token that it knows of each axis of the joint, -1 where unknown."""
        evidence = tokens.new_full((*visible.shape[:2], self.length), -1)
        batch, column, key = visible.nonzero(as_tuple=True)
        evidence[batch, column, keys[batch, key]] = tokens[batch, key]
        return evidence

    def _posteriors(self, evidence: Tensor, own: Tensor) -> Tensor:
        """(B, L, D) and (B, L) -> (B, L, V): the marginal of an axis given the evidence at the other axes."""
        evidence = evidence.scatter(2, own[..., None], -1)
        agrees = ((evidence[:, :, None] == self.states) | (evidence[:, :, None] < 0)).all(-1)  # (B, L, S)
        tokens = self.states.T[own]  # (B, L, S)
        mass = self.probabilities.new_zeros(*own.shape, self.vocab)
        mass.scatter_add_(2, tokens, agrees * self.probabilities)
        total = mass.sum(-1, keepdim=True)
        # Evidence of probability zero: every answer is right, the uniform one stays finite.
        return torch.where(total > 0, mass / total, 1 / self.vocab)


class ToyAdapter(ModelAdapter):
    """The conventions of `ExactModel`: no shift, takes a cache and attention patterns."""

    model_types = ("exact-toy",)
    supports_kv_cache = True
    supports_block_causal = True


def toy_denoiser(
    joint: Tensor, *, eos: int | None = None, pad: int | None = None, shifted: bool = False, with_words: bool = False
) -> Denoiser:
    """A denoiser that knows ``joint`` (V,) * D exactly; the mask token is id V, prompts are token ids.

    Args:
        eos, pad: data tokens with that part to play; None: no end of sequence, padding as `Denoiser` chooses it.
        shifted: the model underneath scores the token to the right; the denoiser knows and undoes it.
        with_words: gives it a `ToyTokenizer`, so that prompts may be text.
    """
    ids = {"mask": joint.shape[0], "eos": eos, "pad": pad}
    given = {name: token for name, token in ids.items() if token is not None}
    tokenizer = ToyTokenizer(joint.shape[0], eos=eos) if with_words else None
    model = ExactModel(joint, shifted=shifted)
    return Denoiser(model, ToyAdapter(), tokenizer, special_ids=given, logits_are_shifted=shifted)


class ToyTokenizer(PreTrainedTokenizer):
    """Words ``w0 w1 ...`` for the data tokens and ``[MASK]`` for id V; the end of sequence is a special token."""

    def __init__(self, vocab: int, *, eos: int | None = None) -> None:
        self.words = [*(f"w{token}" for token in range(vocab)), "[MASK]"]
        super().__init__(mask_token="[MASK]", eos_token=None if eos is None else f"w{eos}")

    @property
    def vocab_size(self) -> int:
        return len(self.words)

    def get_vocab(self) -> dict[str, int]:
        return {word: token for token, word in enumerate(self.words)}

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return " ".join(tokens)

    def _tokenize(self, text: str, **_: object) -> list[str]:
        return text.split()

    def _convert_token_to_id(self, token: str) -> int:
        return self.words.index(token)

    def _convert_id_to_token(self, index: int) -> str:
        return self.words[index]


def random_joint(vocab: int, length: int, *, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """A joint (V,) * D with every state possible and strong dependence between the positions."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn((vocab,) * length, generator=generator, dtype=torch.float64)
    return (2 * scores).flatten().softmax(0).reshape(scores.shape).to(dtype)


def entropy(joint: Tensor) -> float:
    """Entropy of the joint in nats."""
    return float(-(joint * joint.log()).sum())
