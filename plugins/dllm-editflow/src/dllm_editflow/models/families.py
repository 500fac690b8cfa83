"""The families that get edit heads: one row each, and a new one is one more row. Imports no family and no torch."""

from __future__ import annotations

from dataclasses import dataclass

# The modules that a family's own model has not.
HEADS = ("sub_logits", "ins_logits", "rate_heads", "time_embedding", "insert_mix")


@dataclass(frozen=True)
class Family:
    """A family's edit models.

    Args:
        name: in class names: ``Qwen3`` for `EditFlowQwen3Model`.
        title: for listings.
        model_type: of the edit model's ``config.json``; the published one where there is one.
        source: import string of the adapter of the family itself, from which all but the heads comes.
        published_norm: see `dllm_editflow.models.heads.EditFlowModel`.
    """

    name: str
    title: str
    model_type: str
    source: str
    published_norm: str | None = None


FAMILIES = (
    Family("LLaDA", "LLaDA", "editflow-llada", "dllm_llada.adapter:LLaDAAdapter"),
    Family("Dream", "Dream", "editflow-dream", "dllm_dream.adapter:DreamAdapter"),
    Family("Bert", "BERT", "editflow-bert", "dllm_bert.adapter:BertAdapter"),
    Family("Roberta", "RoBERTa", "editflow-roberta", "dllm_bert.adapter:RobertaAdapter"),
    Family(
        "ModernBert", "ModernBERT", "editflow-modernbert", "dllm_bert.adapter:ModernBertAdapter", "model.final_norm"
    ),
    Family("Llama", "Llama turned diffusion", "editflow-llama", "dllm_a2d.adapter:A2DLlamaAdapter"),
    Family("Qwen2", "Qwen2 and Qwen2.5 turned diffusion", "editflow-qwen2", "dllm_a2d.adapter:A2DQwen2Adapter"),
    Family("Qwen3", "Qwen3 turned diffusion", "editflow-qwen3", "dllm_a2d.adapter:A2DQwen3Adapter"),
)
