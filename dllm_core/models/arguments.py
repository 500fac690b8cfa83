"""`ModelArguments`: which model and sampler a script uses, for ``transformers.HfArgumentParser``."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class ModelArguments:
    """Command-line arguments that choose a model and how it is loaded.

    ``dllm_core.utils.get_model`` and ``get_tokenizer`` read them; ``dllm_core.samplers.get_sampler`` reads `sampler`.
    """

    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "Hub id, local folder, or name of a bundled checkpoint. Default: the first bundled one."},
    )
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of a hub id."})
    device: str = field(
        default="auto",
        metadata={"help": "'auto' (the accelerator if there is one), 'cpu', 'cuda', 'cuda:1', 'mps'."},
    )
    dtype: str = field(
        default="auto",
        metadata={"help": "'float32', 'bfloat16', 'float16', or 'auto': float32 on the CPU, else the checkpoint's."},
    )
    attn_implementation: str | None = field(
        default=None, metadata={"help": "'sdpa', 'eager', 'flash_attention_2' ... Default: the model's own choice."}
    )
    sampler: str = field(default="mdlm", metadata={"help": "Name of the sampler; 'dllm plugins' lists what is there."})
