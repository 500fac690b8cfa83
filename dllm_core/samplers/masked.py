"""The masked diffusion sampler: low-confidence remasking over a canvas of masks, block by block."""

from __future__ import annotations

from dllm_core.samplers.base import Sampler


class MDLMSampler(Sampler):
    """Generates by masked diffusion with full attention over the canvas.

    Example:
        >>> denoiser = dllm.load(checkpoint)
        >>> print(dllm.MDLMSampler(denoiser, max_new_tokens=16).sample("12+30="))

    Source: MDLM (arXiv 2406.07524); LLaDA (arXiv 2502.09992), algorithms 4 and 5, generate.py; options as in
    ZHZisZZ/dllm core/samplers/mdlm.py.
    """
