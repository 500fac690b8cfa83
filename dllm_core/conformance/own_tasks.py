"""The test classes of the core's own evaluation tasks, with a few made documents in place of each data set."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from dllm_core.conformance.eval_task import EvalTaskTests
from dllm_core.conformance.task_suite import Doc

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask


def _question(subject: str, question: str, answer: int) -> Doc:
    choices = ["three", "five", "seven", "nine"]
    return {"subject": subject, "question": question, "choices": choices, "answer": answer}


class MMLUTasks(EvalTaskTests):
    component = "core/mmlu"
    prefix = "dllm_mmlu"
    fixture: ClassVar[dict] = {
        "test": [
            _question("high_school_mathematics", "What is 2 + 3?", 1),
            _question("high_school_mathematics", "What is 4 + 3?", 2),
            _question("astronomy", "How many of these stars shine?", 0),
            _question("astronomy", "How many of these moons turn?", 3),
        ],
        "dev": [
            _question("astronomy", "How many of these comets fall?", 0),
            _question("high_school_mathematics", "What is 1 + 2?", 0),
        ],
    }


class HellaSwagTasks(EvalTaskTests):
    component = "core/hellaswag"
    prefix = "dllm_hellaswag"
    fixture: ClassVar[dict] = {
        "validation": [
            {
                "activity_label": "Baking bread",
                "ctx_a": f"[header] {who} kneads the dough.",
                "ctx_b": "then they",
                "endings": ["let it rise.", "sing to it.", "paint it blue. [substeps]", "drive away."],
                "label": label,
            }
            for who, label in (("A cook", "0"), ("A singer", "1"), ("A painter", "2"), ("A driver", "3"))
        ],
        "train": [
            {
                "activity_label": "Fishing",
                "ctx_a": "A woman casts a line.",
                "ctx_b": "",
                "endings": ["She waits.", "She flies.", "She melts.", "She rusts."],
                "label": "0",
            }
        ],
    }

    def wrong_answer(self, task: ConfigurableTask, doc: Doc) -> str:
        return "?"  # most words have one of the four letters in them


class HumanEvalTasks(EvalTaskTests):
    component = "core/humaneval"
    prefix = "dllm_humaneval"
    runs_code = True
    fixture: ClassVar[dict] = {
        "test": [
            {
                "task_id": f"Made/{name}",
                "prompt": f'def {name}(left: int, right: int) -> int:\n    """What {name} says."""\n',
                "entry_point": name,
                "canonical_solution": f"    return left {sign} right\n",
                "test": f"def check(candidate):\n    assert candidate(7, 5) == {result}\n",
            }
            for name, sign, result in (("add", "+", 12), ("subtract", "-", 2))
        ]
    }

    def right_answer(self, task: ConfigurableTask, doc: Doc) -> str:
        whole = task.config.task == "dllm_humaneval_complete"
        return f"```python\n{doc['prompt']}{doc['canonical_solution']}```" if whole else doc["canonical_solution"]


class MBPPTasks(EvalTaskTests):
    component = "core/mbpp"
    prefix = "dllm_mbpp"
    runs_code = True
    fixture: ClassVar[dict] = {
        split: [
            {
                "task_id": number,
                "text": f"Write a function that gives back {number}.",
                "code": f"def give_{number}():\n    return {number}",
                "test_list": [f"assert give_{number}() == {number}", f"assert give_{number}() > 0", "assert True"],
            }
            for number in numbers
        ]
        for split, numbers in (("prompt", (1, 2, 3, 4)), ("test", (11, 12)))
    }

    def right_answer(self, task: ConfigurableTask, doc: Doc) -> str:
        forms = {"dllm_mbpp_instruct": "\n{code}\n```", "dllm_mbpp_quoted": "'{code}'\n[DONE]"}
        return forms.get(task.config.task, "{code}").format(code=doc["code"])


TASK_SUITES: list[type[EvalTaskTests]] = [MMLUTasks, HellaSwagTasks, HumanEvalTasks, MBPPTasks]
