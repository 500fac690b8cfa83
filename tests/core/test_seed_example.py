"""The field's published example runs with only its import line changed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import transformers

import dllm_core as dllm
from dllm_core.errors import ModelLoadError, OptionError

EXAMPLE = Path(__file__).parents[2] / "examples" / "seed.py"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with random weights."""
    from dllm_llada import LLaDAConfig, LLaDAModelLM
    from dllm_llada.tiny.tokenizer import build_tokenizer

    folder = tmp_path_factory.mktemp("random-llada")
    tokenizer = build_tokenizer()
    config = LLaDAConfig(
        vocab_size=len(tokenizer),
        embedding_size=len(tokenizer),
        d_model=16,
        n_layers=1,
        n_heads=2,
        n_kv_heads=2,
        mlp_hidden_size=16,
        max_sequence_length=256,
        mask_token_id=tokenizer.mask_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LLaDAModelLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def arguments(*given: str) -> tuple[dllm.ModelArguments, dllm.DataArguments]:
    parser = transformers.HfArgumentParser((dllm.ModelArguments, dllm.DataArguments))
    return parser.parse_args_into_dataclasses(list(given))


def test_the_example_prints_a_text(checkpoint):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(EXAMPLE), "--model_name_or_path", str(checkpoint)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert "tensor" not in done.stdout


def test_the_example_is_the_published_one_but_for_its_import():
    calls = [
        "import dllm_core as dllm",
        "transformers.HfArgumentParser((dllm.ModelArguments, dllm.DataArguments))",
        "parser.parse_args_into_dataclasses()",
        "dllm.utils.get_model(model_args=model_args)",
        "dllm.utils.get_tokenizer(model_args)",
        "dllm.samplers.get_sampler(model_args, model, tokenizer)",
        "sampler.sample(prompt=",
        "print(output)",
    ]
    code = EXAMPLE.read_text(encoding="utf-8")
    assert [call for call in calls if call not in code] == []


def test_the_printed_text_is_what_sample_gives(checkpoint):
    model_args, _ = arguments("--model_name_or_path", str(checkpoint))
    model, tokenizer = dllm.utils.get_model(model_args=model_args), dllm.utils.get_tokenizer(model_args)
    output = dllm.samplers.get_sampler(model_args, model, tokenizer).sample(prompt="12+30=", max_length=32)
    direct = dllm.sampler("mdlm", dllm.load(checkpoint), max_length=32).sample("12+30=")
    assert str(output) == output.texts[0] == direct.texts[0]
    assert output.sequences.tolist() == direct.sequences.tolist()
    assert output.sequences.shape == (1, 32)


def test_the_tokenizer_is_prepared_for_its_family(checkpoint):
    model_args, _ = arguments("--model_name_or_path", str(checkpoint))
    assert dllm.utils.get_tokenizer(model_args).mask_token == "<|mdm_mask|>"


def test_the_model_arguments_reach_loading(checkpoint):
    given = ["--dtype", "bfloat16", "--attn_implementation", "eager", "--device", "cpu"]
    model = dllm.utils.get_model(arguments("--model_name_or_path", str(checkpoint), *given)[0])
    assert str(model.dtype) == "torch.bfloat16"
    assert model.config._attn_implementation == "eager"


def test_without_a_name_the_first_bundled_checkpoint_is_meant():
    shipped = dllm.utils.registry.bundled_checkpoints()[0][1].name
    assert dllm.utils._name(arguments()[0]) == shipped


def test_without_a_name_and_a_bundled_checkpoint_the_error_says_what_to_give(monkeypatch):
    monkeypatch.setattr(dllm.utils.registry, "bundled_checkpoints", list)
    with pytest.raises(ModelLoadError, match="--model_name_or_path"):
        dllm.utils.get_model(arguments()[0])


def test_a_checkpoint_without_tokenizer_is_named(checkpoint, tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(checkpoint / name)
    with pytest.raises(ModelLoadError, match=re.escape(f"{tmp_path} has no tokenizer")):
        dllm.utils.get_tokenizer(arguments("--model_name_or_path", str(tmp_path))[0])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--truncation", "left"], "truncation must be one of right, filter; got 'left'"),
        (["--max_length", "0"], "max_length must be at least 1, got 0"),
        (["--num_proc", "-1"], "num_proc must be at least 1, got -1"),
    ],
)
def test_data_arguments_are_checked(given, message):
    with pytest.raises(OptionError, match=message):
        arguments(*given)


def test_every_argument_has_a_help_text(capsys):
    with pytest.raises(SystemExit):
        arguments("--help")
    shown = capsys.readouterr().out
    for name in ("model_name_or_path", "revision", "device", "dtype", "attn_implementation", "sampler"):
        assert re.search(rf"--{name}\b", shown)
    assert shown.count("default:") >= 8
