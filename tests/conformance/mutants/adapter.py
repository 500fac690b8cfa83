"""Broken model families: each is LLaDA with one defect, which one check of `AdapterTests` must catch."""

from __future__ import annotations

import functools
import re
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from dllm_llada import LLaDAAdapter, LLaDAConfig, LLaDAModelLM
from dllm_llada.chat_template import CHAT_TEMPLATE
from dllm_llada.conformance import TestAdapter as LLaDATests
from torch import nn

from dllm_core.models.attention import block_causal_pattern
from tests.conformance.mutant import Mutant, suite_for

HOME = tempfile.TemporaryDirectory(prefix="dllm-mutants-")
END, HEADER = "<|eot_id|>", "<|start_header_id|>assistant<|end_header_id|>\\n\\n"


class Model(LLaDAModelLM):
    """Base of models that are given other inputs, or whose logits are changed."""

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, **options):
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids}
        inputs |= {"past_key_values": past_key_values} | options
        self.spoil_inputs(inputs)
        output = super().forward(**inputs)
        output.logits = self.spoil_logits(output.logits, inputs)
        return output

    def spoil_inputs(self, inputs: dict) -> None: ...

    def spoil_logits(self, logits: torch.Tensor, inputs: dict) -> torch.Tensor:
        return logits


def served(model: type[LLaDAModelLM], **attributes: object) -> type[LLaDAAdapter]:
    """The family of a broken model: as LLaDA's, and importable from this module, since loading imports it."""
    name = f"{model.__name__}Family"
    body = {"model_class": f"{__name__}:{model.__name__}", "__module__": __name__} | attributes
    setattr(sys.modules[__name__], name, type(name, (LLaDAAdapter,), body))
    return getattr(sys.modules[__name__], name)


class Shifted(LLaDAAdapter):
    """Not broken: as a family of autoregressive heritage. What its rows are about is a matter of training."""

    logits_are_shifted = True


class Modest(LLaDAAdapter):
    """Not broken: declares nothing that is optional."""

    supports_kv_cache = False
    supports_block_causal = False
    lora_targets = "all-linear"


# ---------------------------------------------------------------------------------------------- declarations, files


class SpellsTurnEnds(LLaDAAdapter):
    eot_tokens = END


class TakesEverything(LLaDAAdapter):
    def check_config(self, config) -> None: ...


class ForgetsTheBase(LLaDAConfig):
    def to_dict(self) -> dict:
        return {name: value for name, value in super().to_dict().items() if name != "rope_theta"}


class ForgetfulFamily(LLaDAAdapter):
    config_class = f"{__name__}:ForgetsTheBase"


class DrawsABuffer(Model):
    def __init__(self, config: LLaDAConfig) -> None:
        super().__init__(config)
        self.register_buffer("scale", torch.rand(()), persistent=False)

    def spoil_logits(self, logits, inputs):
        return logits * self.scale


class AcceptsTornFiles(LLaDAAdapter):
    def load_model(self, path, config, *, dtype, attn_implementation=None, revision=None):
        return LLaDAModelLM.from_pretrained(
            path, config=config, dtype=dtype, attn_implementation=attn_implementation, revision=revision
        )


class LoadsInFloat32(LLaDAAdapter):
    def load_model(self, path, config, *, dtype, **options):
        return super().load_model(path, config, dtype=torch.float32, **options)


class CountsNothing(LLaDAAdapter):
    def context_length(self, config) -> int:
        return 0


class HasFewPlaces(Model):
    def __init__(self, config: LLaDAConfig) -> None:
        super().__init__(config)
        self.places = nn.Embedding(config.max_sequence_length // 2, config.vocab_size)

    def spoil_logits(self, logits, inputs):
        return logits + self.places(torch.arange(inputs["input_ids"].shape[1]))[-1]


# ------------------------------------------------------------------------------------------------------------- rows


class LeavesOutTheLastToken(Model):
    def spoil_logits(self, logits, inputs):
        return logits[..., :-1]


class ScalesUnsaid(Model):
    def spoil_logits(self, logits, inputs):
        return 0.5 * logits


class CapsUnsaid(Model):
    def spoil_logits(self, logits, inputs):
        return 2 * torch.tanh(logits / 2)


class HidesTokens(Model):
    def spoil_inputs(self, inputs):
        inputs["input_ids"].masked_fill_(inputs["input_ids"] == 7, 8)
        inputs["input_ids"][:, 0] = 9


class DropsOut(Model):
    def spoil_logits(self, logits, inputs):
        return nn.functional.dropout(logits, 0.1, training=True)


class ShowsAnotherHead(LLaDAModelLM):
    """Gives out a head that it does not call."""

    def __init__(self, config: LLaDAConfig) -> None:
        super().__init__(config)
        self.spare = nn.Linear(config.d_model, config.vocab_size, bias=False)

    def get_output_embeddings(self):
        return self.spare

    def forward(self, **inputs):
        output = super().forward(**inputs)
        output.logits = self.model.get_output_embeddings()(self.model(**inputs).last_hidden_state)
        return output


class CentresOverPositions(Model):
    def spoil_logits(self, logits, inputs):
        return logits - logits.mean(1, keepdim=True)


class ShiftsItself(Model):
    def spoil_logits(self, logits, inputs):
        return logits.roll(1, 1)


class ShiftsTheOtherWay(Model):
    def spoil_logits(self, logits, inputs):
        return logits.roll(-1, 1)


class CountsColumns(Model):
    def spoil_inputs(self, inputs):
        inputs["position_ids"] = None


class LowestOfFloat32(Model):
    def spoil_logits(self, logits, inputs):
        lowest = torch.tensor(torch.finfo(torch.float32).min).to(logits)
        return torch.cat((logits[..., :-1], lowest.expand_as(logits[..., :1])), -1)


class BuildsMoreThanItUses(LLaDAModelLM):
    def __init__(self, config: LLaDAConfig) -> None:
        super().__init__(config)
        self.pooler = nn.Linear(config.d_model, config.d_model)


class DetachesTheEmbedding(LLaDAModelLM):
    def __init__(self, config: LLaDAConfig) -> None:
        super().__init__(config)
        self.get_input_embeddings().register_forward_hook(lambda _, inputs, output: output.detach())


class ScalesWhenCheckpointing(Model):
    def spoil_logits(self, logits, inputs):
        return logits * 0.9 if self.model.gradient_checkpointing else logits


class KeepsEverything(LLaDAModelLM):
    def activation_checkpointing_enable(self, **options: object) -> None:
        """Says that it did."""


class CallsItselfAHead(LLaDAAdapter):
    extra_heads = ("model",)


class OtherFamilysLayers(LLaDAAdapter):
    lora_targets = ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj", "gate_proj")


# -------------------------------------------------------------------------------------------------------- attention


class StaysCausal(Model):
    def spoil_inputs(self, inputs):
        mask = inputs["attention_mask"]
        if mask is None or mask.dim() == 2:
            length = inputs["input_ids"].shape[1]
            pattern = block_causal_pattern(length, 1)
            inputs["attention_mask"] = pattern if mask is None else pattern & mask[:, None, None, -length:]


class DropsTheMask(Model):
    def spoil_inputs(self, inputs):
        mask = inputs["attention_mask"]
        if mask is not None and mask.dim() == 2:
            inputs["attention_mask"] = None


class LosesPaddedRows(Model):
    def spoil_logits(self, logits, inputs):
        mask = inputs["attention_mask"]
        return logits if mask is None or mask.dim() != 2 else logits.masked_fill(~mask[..., None], float("nan"))


class AddsTruth(Model):
    """Eager attention adds the bool mask as 0 and 1."""

    def spoil_inputs(self, inputs):
        mask = inputs["attention_mask"]
        if mask is not None and self.config._attn_implementation == "eager":
            inputs["attention_mask"] = mask[:, None, None, :].float()


class IgnoresPatterns(Model):
    def spoil_inputs(self, inputs):
        mask = inputs["attention_mask"]
        if mask is not None and mask.dim() == 4:
            inputs["attention_mask"] = None


class TakesTheFirstPattern(Model):
    def spoil_inputs(self, inputs):
        mask = inputs["attention_mask"]
        if mask is not None and mask.dim() == 4:
            inputs["attention_mask"] = mask[:1]


class StartsAgainAtZero(Model):
    def spoil_inputs(self, inputs):
        if inputs["past_key_values"] is not None:
            inputs["position_ids"] = torch.arange(inputs["input_ids"].shape[1])[None]


class StartsAgainByDefault(Model):
    def spoil_inputs(self, inputs):
        if inputs["position_ids"] is None:
            inputs["position_ids"] = torch.arange(inputs["input_ids"].shape[1])[None]


# ------------------------------------------------------------------------------------------------------------- text


class AddsAMask(LLaDAAdapter):
    def prepare_tokenizer(self, tokenizer):
        super().prepare_tokenizer(tokenizer).add_special_tokens({"mask_token": "<mask>"})
        return tokenizer


class GrowsItsTemplate(LLaDAAdapter):
    def prepare_tokenizer(self, tokenizer):
        tokenizer.chat_template += " "
        return tokenizer


class PadsWithMasks(LLaDAAdapter):
    def prepare_tokenizer(self, tokenizer):
        super().prepare_tokenizer(tokenizer).pad_token = self.mask_token
        return tokenizer


class MasksWithALetter(LLaDAAdapter):
    mask_token = "_"

    def prepare_tokenizer(self, tokenizer):
        tokenizer.mask_token = self.mask_token
        return tokenizer


class MisspellsTurnEnds(LLaDAAdapter):
    eot_tokens = ("<|end_of_turn|>",)


class Chats(LLaDAAdapter):
    """Base of families with another chat template."""

    template: str

    def prepare_tokenizer(self, tokenizer):
        super().prepare_tokenizer(tokenizer).chat_template = self.template
        return tokenizer


class AsksNobody(Chats):
    template = CHAT_TEMPLATE.replace(HEADER, "")


class AsksWithABlank(Chats):
    template = CHAT_TEMPLATE.replace(HEADER, f"{HEADER} ")


class MergesWithTheAnswer(Chats):
    template = CHAT_TEMPLATE.replace(HEADER, HEADER[:-2])


class NeverEnds(Chats):
    template = CHAT_TEMPLATE.replace(END, "\\n")


class ForgetsTheConversation(Chats):
    template = CHAT_TEMPLATE.replace("in messages", "in messages[-1:]")


class BeginsEveryMessage(Chats):
    template = CHAT_TEMPLATE.replace("'<|start_header_id|>' +", "bos_token + '<|start_header_id|>' +")


def broken(check: str, adapter: type[LLaDAAdapter], why: str, **attributes: object) -> Mutant:
    name = re.sub(r"(?<!^)(?=[A-Z])", "_", adapter.__name__.removesuffix("Family")).lower()
    attributes = {"component": f"{__name__}:{adapter.__name__}"} | attributes
    return Mutant(check=f"AdapterTests.{check}", name=name, suite=suite_for(LLaDATests, adapter, **attributes), why=why)


def with_config(config_class: type[LLaDAConfig]) -> dict[str, object]:
    return {"tiny_config": lambda self: config_class(**LLaDATests().tiny_config().to_diff_dict())}


@functools.cache
def trained() -> str:
    """A folder with a small LLaDA that knows the alphabet: its logits are not shifted."""
    tests = LLaDATests()
    denoiser = tests.denoiser()
    optimizer = torch.optim.AdamW(denoiser.model.parameters(), lr=3e-3)
    rows = torch.tensor([denoiser.tokenizer(text)["input_ids"] for text in TEXTS])
    generator = torch.Generator().manual_seed(0)
    for _ in range(150):
        hidden = torch.rand(rows.shape, generator=generator) < 0.3
        logits = denoiser.logits(rows.masked_fill(hidden, denoiser.mask_token_id), at=hidden)
        optimizer.zero_grad()
        nn.functional.cross_entropy(logits, rows[hidden]).backward()
        optimizer.step()
    with tests.saved(denoiser.model) as folder:
        return str(shutil.copytree(folder, Path(HOME.name, "trained")))


LETTERS = "abcdefghijklmnopqrstuvwxyz"
TEXTS = [LETTERS[start : start + 12] for start in range(0, 14, 2)]
TRAINED = {"checkpoint": property(lambda self: trained()), "texts": TEXTS}

MUTANTS = [
    broken("test_declarations_are_well_formed", SpellsTurnEnds, "gives eot_tokens as one text, which is many letters"),
    broken("test_only_its_own_model_types_are_taken", TakesEverything, "takes checkpoints of other families"),
    broken(
        "test_config_survives_saving",
        ForgetfulFamily,
        "does not write the rotary base",
        **with_config(ForgetsTheBase),
    ),
    broken("test_saving_and_loading_keep_the_logits", served(DrawsABuffer), "draws a buffer anew at every loading"),
    broken("test_missing_weights_are_refused", AcceptsTornFiles, "loads files that lack weights"),
    broken("test_weights_load_in_the_type_asked_for", LoadsInFloat32, "loads in float32 whatever is asked for"),
    broken("test_context_length_is_stated", CountsNothing, "states a context of 0 tokens"),
    broken("test_context_length_is_stated", served(HasFewPlaces), "states twice the positions that it has"),
    broken("test_every_position_is_scored", served(LeavesOutTheLastToken), "does not score the last token"),
    broken("test_inputs_are_not_changed", served(HidesTokens), "replaces ids in place"),
    broken("test_evaluation_is_deterministic", served(DropsOut), "keeps dropout on in evaluation mode"),
    broken("test_rows_asked_for_are_rows_of_all", served(ShowsAnotherHead), "gives out a head that it does not call"),
    broken("test_rows_asked_for_are_rows_of_all", served(CentresOverPositions), "subtracts a mean over positions"),
    broken(
        "test_losses_of_rows_are_those_of_their_logits",
        served(ScalesUnsaid),
        "scales its logits after the head and does not say so",
    ),
    broken(
        "test_losses_of_rows_are_those_of_their_logits",
        served(CapsUnsaid),
        "caps its logits softly after the head and does not say so",
    ),
    broken(
        "test_rows_belong_to_their_positions",
        served(ShiftsItself, logits_are_shifted=True),
        "shifts its logits itself and declares the shift too",
    ),
    broken("test_rows_belong_to_their_positions", served(ShiftsTheOtherWay), "scores the token before"),
    broken(
        "test_declared_shift_is_that_of_the_weights",
        Shifted,
        "declares a shift that its weights do not have",
        **TRAINED,
    ),
    broken("test_positions_are_those_given", served(CountsColumns), "ignores position_ids"),
    broken("test_bfloat16_is_finite", served(LowestOfFloat32), "writes the lowest float32 into bfloat16 logits"),
    broken("test_gradients_reach_every_weight", served(BuildsMoreThanItUses), "builds a layer that it does not use"),
    broken("test_gradients_reach_every_weight", served(DetachesTheEmbedding), "detaches the embedding"),
    broken("test_gradients_reach_every_weight", CallsItselfAHead, "declares as an extra head what its logits use"),
    broken(
        "test_gradient_checkpointing_changes_nothing",
        served(ScalesWhenCheckpointing),
        "gives other logits with gradient checkpointing",
    ),
    broken(
        "test_gradient_checkpointing_changes_nothing",
        served(KeepsEverything),
        "declares gradient checkpointing and does none",
    ),
    broken("test_lora_targets_are_linear_layers", OtherFamilysLayers, "lists the layers of another family"),
    broken("test_attention_runs_in_the_declared_direction", served(StaysCausal), "keeps the causal mask"),
    broken(
        "test_attention_runs_in_the_declared_direction",
        Modest,
        "sees what comes later and declares that it does not",
        attends_both_ways=False,
    ),
    broken("test_a_row_is_the_same_alone_and_in_a_ragged_batch", served(DropsTheMask), "ignores the attention mask"),
    broken("test_padding_is_not_seen", served(DropsTheMask), "ignores the attention mask"),
    broken("test_padding_is_not_seen", served(LosesPaddedRows), "gives NaN where there is padding"),
    broken("test_eager_attention_is_sdpa", served(AddsTruth), "adds a bool mask as 0 and 1 in eager attention"),
    broken("test_block_causal_pattern_is_honoured", served(IgnoresPatterns), "ignores attention patterns"),
    broken(
        "test_patterns_may_differ_between_rows", served(TakesTheFirstPattern), "takes the first row's pattern for all"
    ),
    broken("test_cache_changes_nothing", served(StartsAgainAtZero), "counts positions from 0 behind a cache"),
    broken(
        "test_blocks_through_the_cache_are_the_block_causal_pass",
        served(StartsAgainByDefault),
        "counts default positions from 0 behind a cache",
    ),
    broken("test_special_tokens_lie_inside_the_embedding", AddsAMask, "adds a mask token behind the embedding"),
    broken("test_preparing_a_tokenizer_twice_is_preparing_it_once", GrowsItsTemplate, "appends to the chat template"),
    broken("test_mask_is_one_token_of_its_own", PadsWithMasks, "pads with the mask token"),
    broken("test_mask_is_one_token_of_its_own", MasksWithALetter, "masks with a token of plain text"),
    broken("test_turn_ends_are_known_tokens", MisspellsTurnEnds, "misspells the end of turn"),
    broken("test_chat_prompt_is_where_an_answer_begins", AsksNobody, "leaves out the assistant's header"),
    broken("test_chat_prompt_is_where_an_answer_begins", AsksWithABlank, "adds a blank behind the assistant's header"),
    broken("test_chat_prompt_ids_begin_the_conversation", MergesWithTheAnswer, "ends in the middle of a token"),
    broken("test_chat_answers_end_with_an_end", NeverEnds, "writes no end behind answers"),
    broken("test_chat_holds_every_message_once", ForgetsTheConversation, "renders the last message only"),
    broken(
        "test_chat_holds_every_message_once", BeginsEveryMessage, "begins every message with a beginning of sequence"
    ),
]
