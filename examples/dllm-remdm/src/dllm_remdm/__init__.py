"""ReMDM for dllm: masked diffusion that may mask a token again and think twice about it."""

__version__ = "0.1.0"
