"""`Denoiser`: a model together with the conventions of its family, so that one sampler serves them all.

Right shift, padding, special tokens and the selection of rows are settled here.

Shapes: B batch, L length, V vocabulary, K positions asked for per row, N positions asked for in all, H hidden.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from dllm_core.errors import ModelLoadError, OptionError
from dllm_core.models.attention import as_model_mask
from dllm_core.models.head import rows_asked_for, rows_projected, rows_scored, token_nll

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask
    from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase

    from dllm_core.models.adapter import ModelAdapter
    from dllm_core.models.lora import AdapterRecord

SPECIAL_NAMES = ("mask", "eos", "pad", "bos", "eot")


class Denoiser:
    """What samplers, objectives and evaluation see of a model.

    Args:
        model: a Hugging Face model, perhaps wrapped (DDP, PEFT): `logits` and `nll` call its forward exactly once.
        adapter: the family's conventions.
        tokenizer: may be None; prompts are then token ids.
        special_ids: token ids by name (``mask``, ``eos``, ``pad``, ``bos``, ``eot``); they win over the tokenizer's.
        logits_are_shifted: overrides the shift that the checkpoint's configuration or its family declares.

    Attributes:
        lora: where the model's LoRA adapter belongs, None where it has none of ours; it is written beside the adapter.

    Raises:
        ModelLoadError: no mask token is known, or a special id lies outside the embedding.
        OptionError: an unknown name in ``special_ids``.
    """

    lora: AdapterRecord | None = None

    def __init__(
        self,
        model: PreTrainedModel,
        adapter: ModelAdapter,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        special_ids: Mapping[str, int] | None = None,
        logits_are_shifted: bool | None = None,
    ) -> None:
        self.model = model
        self.adapter = adapter
        self.tokenizer = tokenizer
        declared = adapter.shifts_logits(self.bare_model.config)
        self.logits_are_shifted = declared if logits_are_shifted is None else logits_are_shifted
        ids = known_ids(tokenizer, special_ids or {}, adapter)
        embedding = self.bare_model.get_input_embeddings().weight
        self.vocab_size: int = getattr(embedding, "ds_shape", embedding.shape)[0]  # ZeRO-3 leaves an empty tensor here
        _check_range(ids, self.vocab_size)
        self.mask_token_id: int = ids["mask"]
        self.eos_token_id: int | None = ids.get("eos")
        self.bos_token_id: int | None = ids.get("bos")
        # Filler is never attended to, so any id serves where the checkpoint names none.
        self.pad_token_id: int = ids.get("pad", ids.get("eos", ids["mask"]))
        self.eot_token_ids: tuple[int, ...] = _eot_ids(tokenizer, adapter, ids)

    @property
    def bare_model(self) -> PreTrainedModel:
        """The model without the wrapper (DDP, FSDP) that `model` may be in."""
        return getattr(self.model, "module", self.model)

    @property
    def device(self) -> torch.device:
        return self.bare_model.get_input_embeddings().weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.bare_model.get_input_embeddings().weight.dtype

    @property
    def attention_implementation(self) -> str | None:
        """The name of the attention that the model runs: ``"sdpa"``, ``"eager"``, ``"flex_attention"`` ..."""
        return self.bare_model.config._attn_implementation

    @property
    def context_length(self) -> int | None:
        """The longest sequence in tokens, None where unbounded."""
        return self.adapter.context_length(self.bare_model.config)

    @property
    def end_token_ids(self) -> tuple[int, ...]:
        """The ids that end a completion: end of sequence and end of turn."""
        own = () if self.eos_token_id is None else (self.eos_token_id,)
        return tuple(dict.fromkeys(own + self.eot_token_ids))

    @property
    def text_token_ids(self) -> torch.Tensor:
        """Every token that text is made of: no special one, and none that the tokenizer does not know. (P,) int64"""
        known = self.vocab_size if self.tokenizer is None else min(len(self.tokenizer), self.vocab_size)
        special = {self.mask_token_id, self.pad_token_id, self.bos_token_id, *self.end_token_ids}
        special |= set() if self.tokenizer is None else set(self.tokenizer.all_special_ids)
        plain = torch.ones(known, dtype=torch.bool)
        plain[[token for token in special if token is not None and token < known]] = False
        return plain.nonzero()[:, 0]

    def logits(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *,
        at: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        attention: torch.Tensor | BlockMask | None = None,
        cache: Cache | None = None,
        lead: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Scores of the tokens AT the positions asked for, for every family (a right shift is undone here).

        Only the rows asked for are projected through the vocabulary head, inside the model's own forward.

        Args:
            input_ids: (B, L) int64.
            attention_mask: (B, L) bool, True = real token; None: all are.
            at: int64 (B, K) positions -> (B, K, V); bool (B, L) -> (N, V), rows in row-major order;
                None -> (B, L, V).
            position_ids: (B, L) int64; None: 0, 1, ... over the real tokens of each row.
            attention: (B or 1, 1, L, K) bool pattern, True = may attend, or under flex attention a BlockMask
                (`dllm_core.models.attention.attention_from` builds what suits); takes the place of
                ``attention_mask``.
            cache: keys and values of earlier positions, for families that declare ``supports_kv_cache``.
            lead: (B, V) scores of the token in column 0, from the call that computed the position before it. A family
                with right-shifted logits needs them where that position is in the cache only; others ignore them.

        Raises:
            OptionError: a pattern or a cache for a family that takes none, or no ``lead`` where it is needed.
        """
        self._check_capabilities(attention, cache)
        self._check_lead(cache, lead)
        if position_ids is None and attention_mask is not None and cache is None:
            position_ids = _positions_of(attention_mask)
        select = rows_asked_for(at, input_ids, position_ids, logits_are_shifted=self.logits_are_shifted)
        # A hook breaks a graph: where this call itself is compiled, the head projects all, and rows are picked then.
        is_traced = select is not None and torch.compiler.is_compiling()
        with rows_projected(self._head(), None if is_traced else select):
            out = self.model(
                input_ids=input_ids,
                attention_mask=self._model_mask(attention_mask, attention),
                position_ids=position_ids,
                **({} if cache is None else {"past_key_values": cache, "use_cache": True}),
            )
        logits = select(out.logits) if is_traced else out.logits
        if at is not None and at.dtype == torch.bool:
            return logits[0]  # (1, N, V) -> (N, V)
        if lead is None or not self.logits_are_shifted:
            return logits
        return _with_lead(logits, lead, at, position_ids)

    def nll(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *,
        at: torch.Tensor,
        targets: torch.Tensor,
        position_ids: torch.Tensor | None = None,
        attention: torch.Tensor | BlockMask | None = None,
    ) -> torch.Tensor:
        """-log p in nats of the tokens AT the positions asked for, (N,) float32 (float64 where the model is).

        Equal to the cross-entropy of `logits`, in value and gradient, in a fraction of the memory: neither the logits
        of a batch nor those of the N rows are ever whole. All of it happens inside the model's own forward.

        Args:
            at: (B, L) bool, the N positions to score, in row-major order.
            targets: (B, L) int64, the tokens to find there; elsewhere anything.
            input_ids, attention_mask, position_ids, attention: as of `logits`.

        Raises:
            OptionError: a pattern for a family that takes none.
        """
        if not self.adapter.logits_end_at_head(self.bare_model.config):
            logits = self.logits(input_ids, attention_mask, at=at, position_ids=position_ids, attention=attention)
            return token_nll(logits, targets[at])
        self._check_capabilities(attention, None)
        if position_ids is None and attention_mask is not None:
            position_ids = _positions_of(attention_mask)
        select = rows_asked_for(at, input_ids, position_ids, logits_are_shifted=self.logits_are_shifted)
        with rows_scored(self._head(), select, targets[at]):
            out = self.model(
                input_ids=input_ids,
                attention_mask=self._model_mask(attention_mask, attention),
                position_ids=position_ids,
            )
        return out.logits[0, :, 0]  # (1, N, 1) -> (N,)

    def _check_lead(self, cache: Cache | None, lead: torch.Tensor | None) -> None:
        if self.logits_are_shifted and lead is None and cache is not None and cache.get_seq_length() > 0:
            raise OptionError(
                "right-shifted logits score a token from the position before it, which for column 0 is in the cache "
                "only; give lead=, its scores from the call that computed that position"
            )

    def _check_capabilities(self, attention: torch.Tensor | None, cache: Cache | None) -> None:
        family = type(self.adapter).__name__
        if cache is not None and not self.adapter.supports_kv_cache:
            raise OptionError(f"{family} declares no KV cache; use cache='none'")
        if attention is not None and not self.adapter.supports_block_causal:
            raise OptionError(
                f"{family} takes no attention pattern, which packing and block diffusion need; use mdlm unpacked"
            )

    def _head(self) -> torch.nn.Module:
        head = self.bare_model.get_output_embeddings()
        if head is None:
            raise ModelLoadError(
                f"{type(self.bare_model).__name__} scores no tokens: it has no vocabulary head "
                "(get_output_embeddings() is None); load the class with a language-modelling head"
            )
        return head

    def _model_mask(
        self, attention_mask: torch.Tensor | None, attention: torch.Tensor | BlockMask | None
    ) -> torch.Tensor | BlockMask | None:
        if attention is None:
            return attention_mask
        return as_model_mask(attention, self.attention_implementation, self.dtype)


def _positions_of(attention_mask: torch.Tensor) -> torch.Tensor:
    """0, 1, ... over the real tokens of each row, wherever the padding stands. (B, L) bool -> (B, L) int64."""
    return (attention_mask.long().cumsum(1) - 1).clamp(min=0)


def _with_lead(
    logits: torch.Tensor, lead: torch.Tensor, at: torch.Tensor | None, position_ids: torch.Tensor | None
) -> torch.Tensor:
    """Scores (B, K, V) with those of column 0 replaced, except where that column is the first of its row."""
    at = torch.arange(logits.shape[1], device=logits.device)[None] if at is None else at
    carried = at == 0 if position_ids is None else (at == 0) & (position_ids[:, :1] > 0)  # (B, K)
    return torch.where(carried[..., None], lead[:, None].to(logits.dtype), logits)


def known_ids(
    tokenizer: PreTrainedTokenizerBase | None, given: Mapping[str, int], adapter: ModelAdapter
) -> dict[str, int]:
    """Special token ids by name; those given win over the tokenizer's.

    Raises:
        ModelLoadError: no mask token is known.
        OptionError: an unknown name.
    """
    unknown = sorted(set(given) - set(SPECIAL_NAMES))
    if unknown:
        raise OptionError(f"unknown special id {unknown[0]!r}; allowed are {', '.join(SPECIAL_NAMES)}")
    own = {} if tokenizer is None else {n: getattr(tokenizer, f"{n}_token_id", None) for n in SPECIAL_NAMES[:4]}
    ids = {name: value for name, value in (own | dict(given)).items() if value is not None}
    if "mask" not in ids:
        looked_for = f" (this family's is {adapter.mask_token!r})" if adapter.mask_token else ""
        raise ModelLoadError(
            f"no mask token is known: the tokenizer has none{looked_for}; give special_ids={{'mask': ID}} or a "
            "tokenizer with a mask token"
        )
    return ids


def _check_range(ids: Mapping[str, int], vocab_size: int) -> None:
    for name, value in ids.items():
        if not 0 <= value < vocab_size:
            raise ModelLoadError(
                f"special id {name}={value} lies outside the embedding of {vocab_size} rows; give special_ids with an "
                f"id from 0 to {vocab_size - 1}, or resize the model's embedding first"
            )


def _eot_ids(
    tokenizer: PreTrainedTokenizerBase | None, adapter: ModelAdapter, ids: Mapping[str, int]
) -> tuple[int, ...]:
    if "eot" in ids:
        return (ids["eot"],)
    vocabulary = {} if tokenizer is None else tokenizer.get_vocab()
    return tuple(vocabulary[text] for text in adapter.eot_tokens if text in vocabulary)
