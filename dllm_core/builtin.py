"""The core's own components, registered through the same hooks as everybody else's, under the plugin name ``core``."""

from __future__ import annotations

from collections.abc import Iterator

from dllm_core.hookspecs import CachePolicySpec, CommitRuleSpec, EvalTaskSpec, ObjectiveSpec, SamplerSpec, hookimpl


@hookimpl
def dllm_objectives() -> Iterator[ObjectiveSpec]:
    yield ObjectiveSpec(
        name="mdlm",
        summary="Masked diffusion: cross-entropy on masked tokens, weighted by the noise schedule",
        target="dllm_core.objectives.mdlm:MDLMObjective",
        source="MDLM (arXiv:2406.07524) equation 10; LLaDA (arXiv:2502.09992) equation 3",
    )
    yield ObjectiveSpec(
        name="bd3lm",
        summary="Block diffusion: every block denoised given the clean blocks before it, in one pass",
        target="dllm_core.objectives.bd3lm:BD3LMObjective",
        source="BD3-LM (arXiv:2503.09573) equation 8",
    )


@hookimpl
def dllm_samplers() -> Iterator[SamplerSpec | CommitRuleSpec | CachePolicySpec]:
    yield SamplerSpec(
        name="mdlm",
        summary="Fills a masked canvas block by block, a few tokens each step",
        target="dllm_core.samplers.masked:MDLMSampler",
        source="LLaDA (arXiv:2502.09992) section 2.4; MaskGIT (arXiv:2202.04200) section 3.2",
    )
    yield SamplerSpec(
        name="bd3lm",
        summary="Block diffusion: masked diffusion inside a block, finished blocks kept in the cache",
        target="dllm_core.samplers.block:BD3LMSampler",
        source="BD3-LM (arXiv:2503.09573) algorithm 2",
    )
    yield CommitRuleSpec(
        name="quota",
        summary="Commits the most confident proposals, as many each step as the schedule says",
        target="dllm_core.samplers.commit:Quota",
        source="MaskGIT (arXiv:2202.04200) section 3.2; LLaDA (arXiv:2502.09992) section 2.4",
    )
    yield CachePolicySpec(
        name="none",
        summary="Computes every position anew at every step",
        target="dllm_core.samplers.cache:NoCache",
        source="LLaDA (arXiv:2502.09992) section 2.4",
    )
    yield CachePolicySpec(
        name="block",
        summary="Keeps the keys and values of finished blocks, under block-causal attention; exact",
        target="dllm_core.samplers.cache:FinishedBlocks",
        source="BD3-LM (arXiv:2503.09573) section 3.3",
    )


@hookimpl
def dllm_eval_tasks() -> Iterator[EvalTaskSpec]:
    yield EvalTaskSpec(
        name="mmlu",
        summary="MMLU with generated answers, all subjects in one task: dllm_mmlu_letter, dllm_mmlu_choice",
        target="dllm_core:evaluation/configs/mmlu",
        source="MMLU (arXiv:2009.03300); lm-eval, mmlu_generative; ZHZisZZ/dllm's fork of lm-eval",
    )
    yield EvalTaskSpec(
        name="hellaswag",
        summary="HellaSwag as a question with lettered endings, the letter generated: dllm_hellaswag",
        target="dllm_core:evaluation/configs/hellaswag",
        source="HellaSwag (arXiv:1905.07830); ZHZisZZ/dllm's fork of lm-eval, hellaswag_gen",
    )
    yield EvalTaskSpec(
        name="humaneval",
        summary="HumanEval asked in four ways: dllm_humaneval, with _instruct, _complete, _sanitized; runs code",
        target="dllm_core:evaluation/configs/humaneval",
        source="HumanEval (arXiv:2107.03374); lm-eval; ZHZisZZ/dllm's fork of lm-eval",
    )
    yield EvalTaskSpec(
        name="mbpp",
        summary="MBPP asked in four ways: dllm_mbpp, with _instruct, _quoted, _direct; runs code",
        target="dllm_core:evaluation/configs/mbpp",
        source="MBPP (arXiv:2108.07732); lm-eval; ZHZisZZ/dllm's fork of lm-eval",
    )
