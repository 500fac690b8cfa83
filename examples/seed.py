"""Generate text with a diffusion language model, in the style of scripts built on ``transformers.HfArgumentParser``.

python examples/seed.py
python examples/seed.py --model_name_or_path GSAI-ML/LLaDA-8B-Instruct --dtype bfloat16
"""

from __future__ import annotations

import transformers

import dllm_core as dllm

parser = transformers.HfArgumentParser((dllm.ModelArguments, dllm.DataArguments))
model_args, data_args = parser.parse_args_into_dataclasses()
model = dllm.utils.get_model(model_args=model_args)
tokenizer = dllm.utils.get_tokenizer(model_args)
sampler = dllm.samplers.get_sampler(model_args, model, tokenizer)

output = sampler.sample(prompt="3 + 4 =", max_length=64)
print(output)
