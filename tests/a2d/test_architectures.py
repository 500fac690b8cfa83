"""Each architecture, converted: it looks both ways, sees no padding, and is the causal model in everything else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers
from dllm_a2d.architectures import ARCHITECTURES
from dllm_a2d.tiny import architecture, causal_config

import dllm_core as dllm
from dllm_core.errors import ModelLoadError
from dllm_core.models.cache import BlockCache
from dllm_core.models.converting import convert_checkpoint

SOURCES = [row.source_type for row in ARCHITECTURES]
WITHOUT_FLEX = ("gpt2",)  # transformers has no flex attention for it
IMPLEMENTATIONS = [
    (source, implementation)
    for source in SOURCES
    for implementation in ("sdpa", "eager", "flex_attention")
    if not (implementation == "flex_attention" and source in WITHOUT_FLEX)
]
WINDOWED = ("qwen2", "qwen3_moe", "gemma3_text", "mistral", "phi3")  # by the tiny configurations, with 4 positions
LENGTH = 24


@pytest.fixture(scope="module", autouse=True)
def _uncompiled() -> Iterator[None]:
    """Flex attention without its compiler, which takes longer than all tests here."""
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.fixture(scope="module")
def converted(causal, tmp_path_factory):
    made: dict[str, Path] = {}

    def convert(source: str) -> Path:
        if source not in made:
            made[source] = tmp_path_factory.mktemp("converted") / source
            convert_checkpoint(causal(source)[0], made[source], to="a2d")
        return made[source]

    return convert


def random_ids(rows: int, length: int) -> torch.Tensor:
    return torch.randint(10, 90, (rows, length), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def influence(logits, length: int = LENGTH) -> torch.Tensor:
    """Whether another token at j changes the logits at i. -> (L, L) bool, i by j"""
    ids = random_ids(1, length)
    before = logits(ids)[0]
    columns = []
    for position in range(length):
        changed = ids.clone()
        changed[0, position] += 7
        columns.append((logits(changed)[0] - before).abs().amax(-1) > 1e-6)
    return torch.stack(columns, 1)


def test_the_ten_are_here():
    assert set(SOURCES) == {
        "llama", "qwen2", "qwen3", "gemma", "gemma3_text", "mistral", "gpt2", "phi3", "olmo2", "qwen3_moe",
    }  # fmt: skip


@pytest.mark.parametrize(("source", "implementation"), IMPLEMENTATIONS)
def test_every_position_sees_every_other(source, implementation, converted, causal):
    """Also those beyond a sliding window of the causal model, which sees no later token."""
    model = dllm.load(converted(source), device="cpu", attn_implementation=implementation)
    assert influence(model.logits).all()
    seen_before = influence(lambda ids: causal(source)[1](input_ids=ids).logits)
    assert not seen_before.triu(1).any()


@pytest.mark.parametrize("source", SOURCES)
def test_windows_of_one_layer_are_gone(source, converted):
    """One layer at a time, as several layers of narrow windows can see far together."""
    model = dllm.load(converted(source), device="cpu")
    body = model.model.base_model
    model.model.config.use_cache = False  # which counts layers
    layers = "h" if source == "gpt2" else "layers"
    both = list(getattr(body, layers))
    for number, layer in enumerate(both):
        setattr(body, layers, torch.nn.ModuleList([layer]))
        kinds = getattr(body.config, "layer_types", None)
        if kinds:
            body.config.layer_types = [kinds[number]]
        assert influence(model.logits).all(), number
        if kinds:
            body.config.layer_types = kinds


@pytest.mark.parametrize("source", WINDOWED)
def test_the_causal_models_do_have_windows(source):
    """Else the test above would show nothing."""
    config = causal_config(source)
    assert config.sliding_window == 4


@pytest.mark.parametrize(("source", "implementation"), IMPLEMENTATIONS)
@pytest.mark.parametrize("side", ["right", "left"])
@torch.no_grad()
def test_padding_changes_nothing(source, implementation, side, converted):
    model = dllm.load(converted(source), device="cpu", attn_implementation=implementation)
    rows = [random_ids(1, length) for length in (LENGTH, 9, 4)]
    mask = torch.zeros(len(rows), LENGTH, dtype=torch.bool)
    batch = torch.full(mask.shape, 99)
    for row, ids in enumerate(rows):
        columns = slice(ids.shape[1]) if side == "right" else slice(LENGTH - ids.shape[1], None)
        batch[row, columns], mask[row, columns] = ids[0], True
    together = model.logits(batch, mask)
    for row, ids in enumerate(rows):
        torch.testing.assert_close(together[row][mask[row]], model.logits(ids)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("full", [False, True], ids=["room", "full"])
@pytest.mark.parametrize("source", SOURCES)
def test_weights_keep_their_bits_and_ties(source, full, causal, tmp_path):
    folder, original = causal(source, full=full)
    convert_checkpoint(folder, tmp_path / "out", to="a2d")
    model = dllm.load(tmp_path / "out", device="cpu")
    new, rows = model.model.state_dict(), original.config.vocab_size
    for name, weight in original.state_dict().items():
        kept = new[name][:rows] if len(weight) == rows else new[name]
        assert torch.equal(kept, weight), name
    embedding, head = (layer.weight for layer in (model.model.get_input_embeddings(), model.model.lm_head))
    assert (embedding is head) == original.config.tie_word_embeddings
    assert embedding.shape[0] == model.model.config.vocab_size == 128
    assert model.mask_token_id == (rows if full else len(model.tokenizer) - 1) < 128
    if full:
        mean = original.get_input_embeddings().weight.mean(0)
        torch.testing.assert_close(embedding[rows:], mean.expand(128 - rows, -1))


@pytest.mark.parametrize("source", ["llama", "gemma", "gpt2"])
@pytest.mark.parametrize("tied", [True, False])
def test_ties_are_as_the_checkpoint_says(source, tied, causal, tmp_path):
    convert_checkpoint(causal(source, full=True, tied=tied)[0], tmp_path / "out", to="a2d")
    model = dllm.load(tmp_path / "out", device="cpu").model
    assert (model.get_input_embeddings().weight is model.lm_head.weight) == tied


@pytest.mark.parametrize("source", SOURCES)
def test_causal_pattern_gives_back_the_causal_model(source, converted, causal):
    """The one difference is who looks at whom, windows aside."""
    original = causal(source)[1]
    if getattr(original.config, "sliding_window", None) is not None:
        config = causal_config(source)
        config.sliding_window = config.max_position_embeddings
        wide = getattr(transformers, architecture(source).model)(config).eval()
        wide.load_state_dict(original.state_dict())
        original = wide
    model = dllm.load(converted(source), device="cpu")
    ids = random_ids(2, LENGTH)
    pattern = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()[None, None]
    with torch.no_grad():
        got = model.logits(ids, attention=pattern)
        want = original(input_ids=ids).logits
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("source", SOURCES)
@torch.no_grad()
def test_a_block_through_the_cache_is_that_of_the_whole_pass(source, converted):
    """The last 6 positions computed alone, over keys and values of the first 10 that were written in two forwards."""
    model = dllm.load(converted(source), device="cpu")
    ids = random_ids(2, 16)
    blocks = torch.tensor([0] * 5 + [1] * 5 + [2] * 6)
    pattern = (blocks[:, None] >= blocks)[None, None]  # (1, 1, L, L)
    whole = model.logits(ids, attention=pattern)
    cache = BlockCache(rows=2, length=16)
    for start, stop in ((0, 5), (5, 10), (10, 16)):
        positions = torch.arange(start, stop).expand(2, -1)
        cache.place(positions, stop)
        part = model.logits(
            ids[:, start:stop], position_ids=positions, attention=pattern[..., start:stop, :stop], cache=cache
        )
        torch.testing.assert_close(part, whole[:, start:stop], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("source", SOURCES)
def test_config_says_what_it_is(source, converted):
    fields = json.loads((converted(source) / "config.json").read_text())
    row = architecture(source)
    assert fields["model_type"] == row.model_type == f"a2d-{source}"
    assert fields["is_causal"] is False
    assert fields["logits_are_shifted"] is False
    assert fields["architectures"] == [f"A2D{row.name}LMHeadModel"]
    assert "auto_map" not in fields


@pytest.mark.parametrize("source", WITHOUT_FLEX)
def test_flex_attention_is_refused_where_there_is_none(source, converted):
    with pytest.raises(ModelLoadError, match="flex_attention"):
        dllm.load(converted(source), device="cpu", attn_implementation="flex_attention")
