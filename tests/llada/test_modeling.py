"""The model by its behaviour: masks, caching, saving, training, dtypes. The published figures: test_published."""

from __future__ import annotations

import weakref

import pytest
import torch
from dllm_llada import LLaDAConfig, LLaDAModel, LLaDAModelLM
from dllm_llada.modeling import LLaDABlock, rotary_angles
from safetensors import safe_open
from transformers import DynamicCache, StaticCache

from dllm_core.models import block_causal_pattern

FLEX = pytest.param("flex_attention", marks=pytest.mark.slow)  # compiles its kernel first
ONE = torch.ones(1, 1, dtype=torch.long)
CLOSE = {"atol": 1e-5, "rtol": 1e-4}
SEQUENTIAL = {"block_type": "sequential", "activation_type": "swiglu"}


def published_shapes(layers: int, width: int, inner: int, rows: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes in the released LLaDA-8B checkpoints (32 heads, as many for keys and values, no biases)."""
    shapes = {f"model.transformer.{name}.weight": (rows, width) for name in ("wte", "ff_out")}
    shapes["model.transformer.ln_f.weight"] = (width,)
    for i in range(layers):
        block = f"model.transformer.blocks.{i}"
        shapes |= {f"{block}.{name}.weight": (width,) for name in ("attn_norm", "ff_norm")}
        shapes |= {f"{block}.{name}.weight": (width, width) for name in ("q_proj", "k_proj", "v_proj", "attn_out")}
        shapes |= {f"{block}.{name}.weight": (inner, width) for name in ("ff_proj", "up_proj")}
        shapes[f"{block}.ff_out.weight"] = (width, inner)
    return shapes


def test_llada_8b_has_the_published_names_and_shapes(published_config):
    with torch.device("meta"):
        model = LLaDAModelLM(LLaDAConfig.from_dict(published_config))
    assert {k: tuple(v.shape) for k, v in model.state_dict().items()} == published_shapes(32, 4096, 12288, 126464)
    assert model.num_parameters() == 8_015_581_184


# -- masks ------------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("implementation", ["sdpa", "eager", FLEX])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("fields", [{}, SEQUENTIAL])
def test_a_row_gets_in_a_padded_batch_what_it_gets_alone(tiny, ids, implementation, side, fields):
    model = tiny(implementation, **fields)
    mask = torch.ones(2, 12, dtype=torch.long)
    real = slice(0, 7) if side == "right" else slice(5, 12)
    mask[0] = 0
    mask[0, real] = 1
    alone = model(ids[:1, real]).logits
    batch = model(ids, attention_mask=mask).logits
    torch.testing.assert_close(batch[:1, real], alone, **CLOSE)
    torch.testing.assert_close(batch[1:], model(ids[1:]).logits, **CLOSE)
    other_padding = torch.where(mask.bool(), ids, (ids + 1) % 49)
    assert torch.equal(model(other_padding, attention_mask=mask).logits[:1, real], batch[:1, real])


@torch.no_grad()
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("argument", ["attention_mask", "attention_bias"])
def test_a_bool_pattern_forbids_what_it_says(tiny, ids, implementation, argument):
    model = tiny(implementation)
    pattern = block_causal_pattern(12, 4)
    logits = model(ids, **{argument: pattern}).logits
    later = ids.clone()
    later[:, 8:] = (later[:, 8:] + 1) % 49
    changed = model(later, **{argument: pattern}).logits
    assert torch.equal(changed[:, :8], logits[:, :8])  # the last block is out of sight ...
    assert not torch.allclose(
        model(later).logits[:, :8], model(ids).logits[:, :8], atol=1e-3
    )  # ... only by the pattern


@torch.no_grad()
def test_every_form_of_one_pattern_gives_the_same(tiny, ids):
    pattern = block_causal_pattern(12, 4)
    additive = torch.zeros(1, 1, 12, 12).masked_fill(~pattern, float("-inf"))
    want = tiny("sdpa")(ids, attention_mask=pattern).logits
    for implementation in ("sdpa", "eager"):
        model = tiny(implementation)
        forms = [pattern, pattern.long(), pattern.to(torch.int8), additive, additive.clamp(min=-1e30)]
        for form in forms:
            torch.testing.assert_close(model(ids, attention_mask=form).logits, want, **CLOSE)
            torch.testing.assert_close(model(ids, attention_bias=form).logits, want, **CLOSE)
        torch.testing.assert_close(model(ids, attention_bias=pattern[0, 0]).logits, want, **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("floating", [False, True])
def test_a_bias_and_a_padding_mask_both_hold(tiny, ids, implementation, floating):
    model, pattern = tiny(implementation), block_causal_pattern(12, 4)
    mask = torch.ones(2, 12)
    mask[0, 9:] = 0
    both = pattern & mask.bool()[:, None, None, :]
    bias = torch.zeros(1, 1, 12, 12).masked_fill(~pattern, float("-inf")) if floating else pattern
    got = model(ids, attention_mask=mask, attention_bias=bias).logits
    want = model(ids, attention_mask=both).logits
    torch.testing.assert_close(got[mask.bool()], want[mask.bool()], **CLOSE)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", ["2-D", "bool", "-inf"])
def test_a_row_that_sees_nothing_is_finite(tiny, ids, implementation, dtype, form):
    model = tiny(implementation).to(dtype).train()
    mask = torch.ones(2, 12, dtype=torch.bool)
    mask[0] = False
    if form != "2-D":
        mask = mask[:, None, None, :].expand(2, 1, 12, 12)
    if form == "-inf":
        mask = torch.zeros(mask.shape).masked_fill(~mask, float("-inf"))
    logits = model(ids, attention_mask=mask).logits
    logits.float().square().mean().backward()
    assert logits.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("implementation", ["flash_attention_2", "flex_attention"])
def test_a_pattern_that_the_implementation_cannot_take_is_refused(tiny, ids, implementation):
    model = tiny()
    model.config._attn_implementation = implementation
    for pattern in (block_causal_pattern(12, 4), torch.zeros(1, 1, 12, 12)):
        with pytest.raises(ValueError, match=f"'sdpa' or 'eager'.*{implementation}"):
            model(ids, attention_mask=pattern)


def test_two_patterns_are_refused(tiny, ids):
    pattern = block_causal_pattern(12, 4)
    with pytest.raises(ValueError, match="two patterns"):
        tiny()(ids, attention_mask=pattern, attention_bias=pattern)


@torch.no_grad()
def test_attention_goes_through_the_interface_and_is_never_causal(tiny, ids, attention_probe):
    name, calls = attention_probe
    tiny(name)(ids)
    assert len(calls) == 2  # one for each layer
    module, query, key, options = calls[0]
    assert isinstance(module, LLaDABlock)
    assert (query.shape, key.shape) == ((2, 4, 12, 8), (2, 2, 12, 8))  # heads are grouped by the interface, not here
    assert module.is_causal is False
    assert options == {"scaling": 8**-0.5, "dropout": 0.0, "is_causal": False}


# -- positions and cache ----------------------------------------------------------------------------------------------


@torch.no_grad()
def test_only_distances_between_positions_matter_and_they_do(tiny, ids):
    model, places = tiny(), torch.arange(12)[None]
    want = model(ids).logits
    torch.testing.assert_close(model(ids, position_ids=places + 20).logits, want, atol=1e-4, rtol=1e-4)
    spread = model(ids, position_ids=places * 2).logits
    assert not torch.allclose(spread, want, atol=1e-3)
    per_row = model(ids, position_ids=torch.cat((places, places * 2))).logits
    torch.testing.assert_close(per_row, torch.stack((want[0], spread[1])), **CLOSE)


def test_rotary_angles_stay_exact_far_out_and_in_half_precision():
    cos, sin = rotary_angles(torch.tensor([[4095]]), head_dim=128, theta=500000.0)
    exact = 4095 / 500000.0 ** (torch.arange(0, 128, 2, dtype=torch.float64) / 128)
    torch.testing.assert_close(cos[0, 0, 0].double(), exact.cos().repeat(2), atol=5e-4, rtol=0)
    torch.testing.assert_close(sin[0, 0, 0].double(), exact.sin().repeat(2), atol=5e-4, rtol=0)


@torch.no_grad()
def test_full_precision_rotation_is_the_more_exact_one(tiny, ids):
    want = tiny()(ids, position_ids=torch.arange(12)[None] + 4000).logits
    errors = []
    for full in (True, False):
        model = tiny(rope_full_precision=full).to(torch.bfloat16)
        errors.append((model(ids, position_ids=torch.arange(12)[None] + 4000).logits - want).abs().mean())
    assert errors[0] < errors[1]


@torch.no_grad()
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("fields", [{}, SEQUENTIAL, {"attention_layer_norm": True}, {"block_group_size": 2}])
def test_blocks_on_a_cached_prefix_equal_the_full_forward(tiny, ids, implementation, fields):
    model = tiny(implementation, **fields)
    want = model(ids, attention_mask=block_causal_pattern(12, 4)).logits
    cache = DynamicCache(config=model.config)
    for start in range(0, 12, 4):
        block = ids[:, start : start + 4]
        model((block + 1) % 49, past_key_values=cache)  # a first, different guess of the block ...
        cache.crop(-4)  # ... taken back, as a denoising step does
        out = model(block, past_key_values=cache)
        torch.testing.assert_close(out.logits, want[:, start : start + 4], **CLOSE)
    assert out.past_key_values is cache
    assert cache.get_seq_length() == 12


@torch.no_grad()
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_a_static_cache_shows_only_what_is_written(tiny, ids, implementation):
    model = tiny(implementation)
    want = model(ids, attention_mask=block_causal_pattern(12, 6)).logits
    cache = StaticCache(config=model.config, max_cache_len=20)
    got = [model(ids[:, :6], past_key_values=cache).logits, model(ids[:, 6:], past_key_values=cache).logits]
    torch.testing.assert_close(torch.cat(got, dim=1), want, **CLOSE)


@torch.no_grad()
def test_a_padded_prefix_can_be_cached(tiny, ids):
    model, mask = tiny(), torch.ones(2, 12, dtype=torch.long)
    mask[0, :3] = 0
    cache = model(ids[:, :8], attention_mask=mask[:, :8], use_cache=True).past_key_values
    got = model(ids[:, 8:], attention_mask=mask, past_key_values=cache).logits[:1]
    cache = model(ids[:1, 3:8], use_cache=True).past_key_values
    torch.testing.assert_close(got, model(ids[:1, 8:], past_key_values=cache).logits, **CLOSE)


@torch.no_grad()
def test_nothing_is_cached_unless_asked_for(tiny, ids):
    assert tiny()(ids).past_key_values is None
    assert tiny(use_cache=True)(ids).past_key_values.get_seq_length() == 12
    assert tiny(use_cache=True)(ids, use_cache=False).past_key_values is None


# -- saving and loading -----------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize(
    "fields", [{}, {"weight_tying": True}, SEQUENTIAL, {"block_group_size": 2}, {"include_bias": True}]
)
def test_a_sharded_checkpoint_comes_back_the_same(tiny, ids, tmp_path, fields):
    model = tiny(**fields)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 1
    again, info = LLaDAModelLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert torch.equal(again(ids).logits, model(ids).logits)
    assert again.config.to_dict() | {"_name_or_path": ""} == model.config.to_dict() | {
        "_name_or_path": "",
        "architectures": ["LLaDAModelLM"],
    }
    stored = {key for shard in shards for key in safe_open(shard, "pt").keys()}  # noqa: SIM118
    assert ("model.transformer.ff_out.weight" in stored) is not model.config.weight_tying


@torch.no_grad()
def test_the_backbone_loads_alone(tiny, ids, tmp_path):
    model = tiny()
    model.save_pretrained(tmp_path)
    hidden = LLaDAModel.from_pretrained(tmp_path)(ids).last_hidden_state
    assert torch.equal(hidden, model(ids, output_hidden_states=True).hidden_states[-1])


@torch.no_grad()
@pytest.mark.parametrize("tying", [False, True])
def test_resized_embeddings_survive_saving(tiny, ids, tmp_path, tying):
    model = tiny(weight_tying=tying, embedding_size=56)
    before = model(ids).logits
    model.resize_token_embeddings(60, mean_resizing=False)
    torch.testing.assert_close(model(ids).logits[..., :56], before, **CLOSE)
    model.save_pretrained(tmp_path)
    again = LLaDAModelLM.from_pretrained(tmp_path)
    assert (again.config.embedding_rows, again.get_output_embeddings().out_features) == (60, 60)
    assert torch.equal(again(ids).logits, model(ids).logits)


# -- the head ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("fields", [{}, {"weight_tying": True}, {"scale_logits": True, "include_bias": True}])
def test_a_hook_on_the_head_chooses_the_projected_rows(tiny, ids, fields):
    model = tiny(**fields)
    want = model(ids).logits
    head = model.get_output_embeddings()
    assert isinstance(head, torch.nn.Linear)
    handle = head.register_forward_pre_hook(lambda _, inputs: (inputs[0][:, 3:5],))
    torch.testing.assert_close(model(ids).logits, want[:, 3:5], **CLOSE)
    handle.remove()
    assert (head.weight is model.get_input_embeddings().weight) is model.config.weight_tying


@torch.no_grad()
def test_logits_have_a_column_for_every_embedding_row(tiny, ids):
    assert tiny(embedding_size=64)(ids).logits.shape == (2, 12, 64)


# -- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["attention_dropout", "residual_dropout", "embedding_dropout"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_each_dropout_acts_in_training_and_only_there(tiny, ids, name, implementation):
    still, model = tiny(implementation), tiny(implementation, **{name: 0.5})
    assert torch.equal(model(ids).logits, still(ids).logits)
    assert torch.equal(still.train()(ids).logits, still.eval()(ids).logits)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first, second = model.train()(ids).logits, model(ids).logits
    assert not torch.allclose(first, second, atol=1e-3)


def test_residual_dropout_acts_on_attention_and_mlp(tiny, ids):
    model, inputs = tiny(residual_dropout=0.5), []
    block = model.model.blocks[0]
    block.attn_out.register_forward_hook(lambda *_: inputs.append("attention"))
    block.ff_out.register_forward_hook(lambda *_: inputs.append("mlp"))
    block.dropout.register_forward_hook(lambda *_: inputs.append("dropout"))
    model(ids)
    assert inputs == ["attention", "dropout", "mlp", "dropout"]


def gradients(model: LLaDAModelLM, ids: torch.Tensor) -> list[torch.Tensor]:
    model.zero_grad()
    model(ids, attention_mask=torch.ones_like(ids)).logits.square().mean().backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_recomputes_blocks_and_gives_the_same_gradients(tiny, ids, reentrant):
    model = tiny(use_cache=True).train()
    runs = []
    for block in model.model.blocks:
        block.q_proj.register_forward_hook(lambda *_: runs.append(1))
    want = gradients(model, ids)
    assert len(runs) == 2
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    assert model(ids).past_key_values is None  # a recomputed block would write into the cache twice
    runs.clear()
    got = gradients(model, ids)
    assert len(runs) == 4  # forward and recomputation, for each of the two layers
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, **CLOSE)


def test_every_parameter_gets_a_gradient(tiny, ids):
    everything = {"include_bias": True, "bias_for_layer_norm": True, "attention_layer_norm": True}
    assert all(gradient.abs().sum() > 0 for gradient in gradients(tiny(**everything).train(), ids))


@torch.no_grad()
def test_fresh_weights_follow_the_published_scheme(tiny):
    model = tiny(d_model=128, mlp_hidden_size=512, n_layers=3, vocab_size=512)
    for layer, block in enumerate(model.model.blocks):
        for module, fan_in, shrink in (
            (block.q_proj, 128, 1),
            (block.up_proj, 128, 1),
            (block.attn_out, 128, (2 * (layer + 1)) ** 0.5),
            (block.ff_out, 512, (2 * (layer + 1)) ** 0.5),
        ):
            std = fan_in**-0.5 / shrink
            assert module.weight.abs().max() <= 3 * std
            assert module.weight.std() == pytest.approx(0.987 * std, rel=0.03)  # of a normal cut at 3 deviations
        assert torch.equal(block.attn_norm.weight, torch.ones(128))
    assert torch.equal(tiny(layer_norm_type="gemma_rms").model.transformer["ln_f"].weight, torch.zeros(32))


@torch.no_grad()
@pytest.mark.parametrize(
    ("init_fn", "fields", "std"),
    [
        ("normal", {"init_std": 0.1}, 0.1),
        ("normal", {"init_std": 0.1, "init_cutoff_factor": 1.0}, 0.054),
        ("fan_in", {}, 128**-0.5),
        ("kaiming_normal", {}, (2 / 128) ** 0.5),
        ("full_megatron", {"init_std": 0.1}, 0.0987),
    ],
)
def test_each_init_fn_sets_the_scale(tiny, init_fn, fields, std):
    model = tiny(d_model=128, init_fn=init_fn, **fields)
    assert model.model.blocks[0].q_proj.weight.std() == pytest.approx(std, rel=0.03)


# -- dtypes, devices, compilation -------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_close(tiny, ids, implementation, dtype):
    want = tiny()(ids).logits
    got = tiny(implementation).to(dtype)(ids).logits
    assert got.dtype == dtype
    assert got.isfinite().all()
    assert (got - want).abs().mean() < 0.05 * want.abs().mean()


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_autocast_with_masks_is_finite(tiny, ids, implementation):
    model, mask = tiny(implementation).train(), torch.ones(2, 12, dtype=torch.long)
    mask[0, 5:] = 0
    for form in (mask, block_causal_pattern(12, 4)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(ids, attention_mask=form).logits
        logits.float().square().mean().backward()
        assert logits.isfinite().all()
        assert all(p.grad.isfinite().all() for p in model.parameters())


@torch.no_grad()
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_forward_never_reads_a_value_back(tiny, ids, implementation):
    # On the meta device a tensor has no values: whatever would make the host wait for an accelerator raises here.
    model, ids = tiny(implementation).to("meta"), ids.to("meta")
    mask = torch.ones_like(ids)
    for form in (None, mask, block_causal_pattern(12, 4, device="meta")):
        assert model(ids, attention_mask=form, use_cache=True).logits.shape == (2, 12, 50)
    cache = model(ids, use_cache=True).past_key_values
    assert model(ids[:, :4], past_key_values=cache).logits.shape == (2, 4, 50)


@torch.no_grad()
def test_it_compiles_to_one_graph(tiny, ids):
    model = tiny()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    pattern = block_causal_pattern(12, 4)
    torch.testing.assert_close(compiled(ids).logits, model(ids).logits, **CLOSE)
    torch.testing.assert_close(
        compiled(ids, attention_mask=pattern).logits, model(ids, attention_mask=pattern).logits, **CLOSE
    )


# -- arguments --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_hidden_states_are_the_inputs_of_all_blocks_and_the_normed_end(tiny, ids):
    for fields in ({}, {"block_group_size": 2}):
        model = tiny(**fields)
        out = model(ids, output_hidden_states=True)
        assert len(out.hidden_states) == 3
        assert torch.equal(out.hidden_states[0], model.get_input_embeddings()(ids))
        assert torch.equal(model.get_output_embeddings()(out.hidden_states[-1]), out.logits)
    assert model(ids).hidden_states is None


@torch.no_grad()
def test_states_nobody_asked_for_are_let_go(tiny, ids):
    model, alive = tiny(n_layers=3), []
    outputs = []
    for block in model.model.blocks:
        block.register_forward_hook(lambda _, __, output: outputs.append(weakref.ref(output)))
    model.model.transformer["ln_f"].register_forward_pre_hook(
        lambda *_: alive.append([output() is not None for output in outputs])
    )
    model(ids)
    assert alive == [[False, False, True]]


@torch.no_grad()
def test_embeddings_serve_instead_of_ids(tiny, ids):
    model = tiny(input_emb_norm=True)
    embedded = model.get_input_embeddings()(ids)
    assert torch.equal(model(inputs_embeds=embedded).logits, model(ids).logits)


def test_a_tuple_comes_back_when_asked_for(tiny, ids):
    assert isinstance(tiny()(ids, return_dict=False), tuple)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "exactly one of input_ids and inputs_embeds"),
        ({"input_ids": ONE, "inputs_embeds": ONE}, "exactly one"),
        ({"input_ids": ONE, "labels": ONE}, "takes no labels"),
        ({"input_ids": ONE, "output_attentions": True}, "takes no output_attentions"),
    ],
)
def test_what_it_cannot_do_it_refuses(tiny, arguments, message):
    with pytest.raises(ValueError, match=message):
        tiny()(**arguments)


def test_blocks_are_not_split_across_devices(tiny):
    names = {type(module).__name__ for module in tiny().modules()}
    assert tiny()._no_split_modules == {"LLaDABlock"}
    assert names >= {"LLaDABlock"}
