"""A sampler for dllm that writes several tokens in a step where the model is sure."""

__version__ = "0.1.0"
