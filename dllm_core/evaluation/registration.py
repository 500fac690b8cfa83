"""Makes the model ``dllm`` known to lm-eval, and says what to do where lm-eval is not there."""

from __future__ import annotations

import importlib.util

from dllm_core.errors import DllmError


class EvaluationUnavailableError(DllmError, ImportError):
    """lm-eval, which evaluation builds on, is not installed."""


def check_installed() -> None:
    """Raise EvaluationUnavailableError unless lm-eval is there."""
    if importlib.util.find_spec("lm_eval") is None:
        raise EvaluationUnavailableError("evaluation needs lm-eval; pip install 'dllm-core[eval]'")


def register_model() -> None:
    """Enter ``dllm`` into lm-eval's table of models; it is imported when it is asked for.

    Raises:
        EvaluationUnavailableError: lm-eval is not installed.
    """
    check_installed()
    import lm_eval.models  # noqa: F401 - the table fills itself only while it is empty
    from lm_eval.api.registry import model_registry

    if "dllm" not in model_registry:
        model_registry.register("dllm", target="dllm_core.evaluation.bridge:DiffusionLM")
