"""`LLaDAConfig`: the fields of the published LLaDA checkpoints' ``config.json``, checked.

Source: GSAI-ML/LLaDA-8B-Base and -Instruct, ``configuration_llada.py`` (the model follows AI2's OLMo).
"""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import AutoConfig, PreTrainedConfig

from dllm_core.errors import ModelLoadError

# What the published code takes for a field that config.json leaves out. They are a GPT-2's, not LLaDA's.
PUBLISHED_DEFAULTS: dict[str, Any] = {
    "d_model": 768,
    "n_heads": 12,
    "n_layers": 12,
    "mlp_hidden_size": None,
    "activation_type": "swiglu",
    "block_type": "sequential",
    "layer_norm_type": "default",
    "rope": False,
    "rope_theta": 10000.0,
    "max_sequence_length": 1024,
    "vocab_size": 50257,
    "embedding_size": 50304,
    "weight_tying": True,
    "bias_for_layer_norm": None,
    "attention_dropout": 0.1,
    "residual_dropout": 0.1,
    "embedding_dropout": 0.1,
    "init_fn": "normal",
}

ALLOWED: dict[str, tuple[object, ...]] = {
    "block_type": ("llama", "sequential"),
    "activation_type": ("silu", "gelu", "relu", "swiglu"),
    "layer_norm_type": ("rms", "gemma_rms", "default"),
    "init_fn": ("mitchell", "normal", "kaiming_normal", "fan_in", "full_megatron"),
    "rope": (True,),
    "alibi": (False,),
    "multi_query_attention": (None, True, False),
}
POSITIVE = ("d_model", "n_heads", "n_layers", "mlp_ratio", "max_sequence_length", "vocab_size", "block_group_size")
DROPOUTS = ("attention_dropout", "residual_dropout", "embedding_dropout")
# Fields of related architectures: reading past them would load something that is not the checkpoint.
FOREIGN = ("num_experts", "n_experts", "rope_scaling", "sliding_window", "clip_qkv")


class LLaDAConfig(PreTrainedConfig):
    """Architecture of a LLaDA model; the defaults are those of LLaDA-8B.

    A ``config.json`` that leaves a field out gets the published code's default instead (`PUBLISHED_DEFAULTS`).

    Args:
        vocab_size: number of tokens.
        embedding_size: rows of the embedding and columns of the logits; None: ``vocab_size``.
        d_model, n_layers, n_heads: width, depth, attention heads.
        n_kv_heads: key and value heads; None: ``n_heads``, or 1 with ``multi_query_attention``.
        mlp_hidden_size: width of the MLP; None: ``mlp_ratio * d_model``.
        block_type: ``"llama"`` (separate q, k, v; gated MLP) or ``"sequential"`` (fused ``att_proj``; plain MLP).
        block_group_size: blocks per group; above 1 the weights are named ``block_groups.G.I`` instead of ``blocks.I``.
        activation_type: ``"silu"``, ``"gelu"``, ``"relu"``, or ``"swiglu"`` (sequential blocks only).
        layer_norm_type: ``"rms"``, ``"gemma_rms"`` (scale 1 + weight) or ``"default"`` (mean and variance).
        layer_norm_with_affine, bias_for_layer_norm: norms have a weight, a bias (None: as ``include_bias``).
        attention_layer_norm, attention_layer_norm_with_affine: norms over the whole query and key, before the heads.
        rope_theta, rope_full_precision: rotary base; rotate in float32 whatever the model's type.
        include_bias, include_qkv_bias: biases in all linear layers; in the query, key and value projections.
        input_emb_norm: embeddings times sqrt(d_model).
        scale_logits: logits divided by sqrt(d_model).
        weight_tying: the vocabulary head shares the embedding matrix.
        attention_dropout, residual_dropout, embedding_dropout: used in training mode only.
        init_fn, init_std, init_cutoff_factor: how fresh weights are drawn (`dllm_llada.initialization`).

    Raises:
        ModelLoadError: a field holds what this model does not compute; the message names it.
    """

    model_type = "llada"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]
    attribute_map: ClassVar[dict[str, str]] = {
        "hidden_size": "d_model",
        "num_attention_heads": "n_heads",
        "num_hidden_layers": "n_layers",
        "max_position_embeddings": "max_sequence_length",
        "tie_word_embeddings": "weight_tying",
    }

    vocab_size: int = 126464
    embedding_size: int | None = None
    d_model: int = 4096
    n_layers: int = 32
    n_heads: int = 32
    n_kv_heads: int | None = None
    multi_query_attention: bool | None = None
    mlp_hidden_size: int | None = 12288
    mlp_ratio: int = 4
    block_type: str = "llama"
    block_group_size: int = 1
    activation_type: str = "silu"
    layer_norm_type: str = "rms"
    layer_norm_with_affine: bool = True
    bias_for_layer_norm: bool | None = False
    rms_norm_eps: float = 1e-5
    attention_layer_norm: bool = False
    attention_layer_norm_with_affine: bool = True
    max_sequence_length: int = 4096
    rope: bool = True
    rope_theta: float = 500000.0
    rope_full_precision: bool = True
    alibi: bool = False
    include_bias: bool = False
    include_qkv_bias: bool | None = False
    input_emb_norm: bool = False
    scale_logits: bool = False
    weight_tying: bool = False
    attention_dropout: float = 0.0
    residual_dropout: float = 0.0
    embedding_dropout: float = 0.0
    init_fn: str = "mitchell"
    init_std: float = 0.02
    init_cutoff_factor: float | None = None
    use_cache: bool = False
    mask_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    pad_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        for name in FOREIGN:
            if kwargs.get(name) is not None:
                raise ModelLoadError(
                    f"LLaDA config has {name}={kwargs[name]!r}, which this model does not compute; only dense LLaDA "
                    "checkpoints (LLaDA-8B, LLaDA-1.5) load here"
                )
        super().__post_init__(**kwargs)
        self.validate_architecture()

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> LLaDAConfig:
        """Read a ``config.json``: what it leaves out gets `PUBLISHED_DEFAULTS`; LLaDA's own names win over aliases."""
        found = config_dict.get("model_type", cls.model_type)
        if found != cls.model_type:
            raise ModelLoadError(
                f"config.json says model_type {found!r}, this family serves {cls.model_type!r}; leave out adapter= to "
                "choose the family from config.json"
            )
        own = {k: v for k, v in config_dict.items() if cls.attribute_map.get(k) not in config_dict}
        named = {cls.attribute_map.get(k, k) for k in own}
        return super().from_dict({k: v for k, v in PUBLISHED_DEFAULTS.items() if k not in named} | own, **kwargs)

    @property
    def num_key_value_heads(self) -> int:
        """Key and value heads, whichever of the two fields says so."""
        if self.n_kv_heads is not None:
            return self.n_kv_heads
        return 1 if self.multi_query_attention else self.n_heads

    @property
    def head_dim(self) -> int:
        return self.d_model // self.n_heads

    @property
    def intermediate_size(self) -> int:
        """Width of the MLP, before the halving of ``"swiglu"``."""
        return self.mlp_ratio * self.d_model if self.mlp_hidden_size is None else self.mlp_hidden_size

    @property
    def embedding_rows(self) -> int:
        """Rows of the embedding and columns of the logits."""
        return self.vocab_size if self.embedding_size is None else self.embedding_size

    @property
    def qkv_bias(self) -> bool:
        return bool(self.include_bias or self.include_qkv_bias)

    @property
    def norm_bias(self) -> bool:
        return self.include_bias if self.bias_for_layer_norm is None else self.bias_for_layer_norm

    def validate_architecture(self) -> None:
        """Raise `ModelLoadError` on the first field that this model does not compute."""
        for name, allowed in ALLOWED.items():
            _require(getattr(self, name) in allowed, name, getattr(self, name), f"one of {list(allowed)}")
        for name in POSITIVE:
            value = getattr(self, name)
            _require(isinstance(value, int) and value >= 1, name, value, "a whole number, at least 1")
        for name in DROPOUTS:
            _require(0 <= getattr(self, name) < 1, name, getattr(self, name), "from 0 up to, but not, 1")
        self._check_heads()
        self._check_sizes()

    def _check_heads(self) -> None:
        heads, kv_heads = self.n_heads, self.num_key_value_heads
        _require(self.d_model % heads == 0, "n_heads", heads, f"a divisor of d_model={self.d_model}")
        _require(self.head_dim % 2 == 0, "n_heads", heads, f"such that d_model / n_heads is even, not {self.head_dim}")
        _require(kv_heads >= 1 and heads % kv_heads == 0, "n_kv_heads", kv_heads, f"a divisor of n_heads={heads}")
        if self.multi_query_attention is not None and self.n_kv_heads is not None:
            wanted = 1 if self.multi_query_attention else heads
            _require(
                kv_heads == wanted,
                "n_kv_heads",
                kv_heads,
                f"{wanted} or null beside multi_query_attention={self.multi_query_attention}",
            )

    def _check_sizes(self) -> None:
        rows, width, group = self.embedding_rows, self.intermediate_size, self.block_group_size
        _require(rows >= self.vocab_size, "embedding_size", rows, f"at least vocab_size={self.vocab_size}")
        _require(self.n_layers % group == 0, "block_group_size", group, f"a divisor of n_layers={self.n_layers}")
        _require(width >= 1, "mlp_hidden_size", width, "at least 1")
        if self.activation_type == "swiglu":
            _require(
                self.block_type == "sequential",
                "activation_type",
                "swiglu",
                "silu, gelu or relu in a block of type llama, which has a gate of its own",
            )
            _require(width % 2 == 0, "mlp_hidden_size", width, "even with activation_type='swiglu', which halves it")


def _require(holds: bool, field: str, value: object, allowed: str) -> None:
    if not holds:
        raise ModelLoadError(f"LLaDA config has {field}={value!r}; it must be {allowed}; correct config.json")


# So that Hugging Face's own loaders (AutoTokenizer reads the config) know the model type; a second import is harmless.
AutoConfig.register(LLaDAConfig.model_type, LLaDAConfig, exist_ok=True)
