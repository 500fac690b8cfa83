"""lm-eval's own command line with the model ``dllm``: ``python -m dllm_core.evaluation run --model dllm ...``.

lm-eval looks for models in its own table only, so somebody has to enter ours before it reads its arguments. Code that a
model writes is run in our jail here too, whatever the model.
"""

from __future__ import annotations

from lm_eval.__main__ import cli_evaluate

from dllm_core.evaluation.code_tasks import code_eval_in_jail
from dllm_core.evaluation.registration import register_model

if __name__ == "__main__":
    register_model()
    with code_eval_in_jail(loading=False):
        cli_evaluate()
