"""The same files through `dllm eval` and through lm-eval alone: prompts, filters and scores are equal, byte for byte.

lm-eval's own configurations read the files as lm-eval reads any local data (``dataset_path: json``), nothing of ours in
between; `dllm eval` finds the same files by ``--data-dir``. Both models say the same made answers.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest

pytest.importorskip("lm_eval")
pytest.importorskip("resource")

import lm_eval.tasks
from lm_eval import simple_evaluate
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager

from dllm_core import load
from dllm_core.cli import main
from dllm_core.evaluation import execution
from dllm_core.evaluation.bridge import DiffusionLM

STOCK = Path(lm_eval.tasks.__file__).parent
SEEDS = {"random_seed": 0, "numpy_random_seed": 1234, "torch_random_seed": 1234, "fewshot_random_seed": 1234}
Rows = Sequence[Mapping[str, object]]
LETTERS = "ABCD"
FILES: dict[str, Rows] = {
    "gsm8k/main/train": [
        {
            "question": f"Ann has {n} \u2019pears\u2019 and eats 1. How many?",
            "answer": f"{n} - 1 = {n - 1}\n#### {n - 1}",
        }
        for n in range(2, 14)
    ],
    "gsm8k/main/test": [
        {
            "question": f" Bob buys {n}  kites at $2 each.  How much?",
            "answer": f"{n} * 2 = <<{n}*2={2 * n}>>\n#### {2 * n}",
        }
        for n in (5, 600, 6)
    ],
    "ai2_arc/ARC-Challenge/train": [
        {"question": "What falls?", "choices": {"text": ["rain", "light"], "label": ["A", "B"]}, "answerKey": "A"}
    ],
    "ai2_arc/ARC-Challenge/test": [
        {
            "question": f"Which of {n} is round? ",
            "choices": {"text": ["a ball", "a box", "a cone", "a tent"], "label": list(labels)},
            "answerKey": labels[n],
        }
        for n, labels in enumerate(("ABCD", "1234", "ABCD"))
    ],
    **{
        f"mmlu/{part}/{split}": [
            {"question": f"{split} {n}: which bone? ", "subject": subject, "choices": list("wxyz"), "answer": n % 4}
            for n in range(4)
            for subject in subjects
        ]
        for part, subjects in (("anatomy", ("anatomy",)), ("all", ("virology", "anatomy")))
        for split in ("test", "dev")
    },
    "openai_humaneval/test": [
        {
            "task_id": f"Made/{name}",
            "prompt": f'import math\n\n\ndef {name}(left, right):\n    """Says\n    >>> {name}(1, 2)\n    """\n',
            "entry_point": name,
            "canonical_solution": "    return left + right\n",
            "test": f"def check(candidate):\n    assert candidate(1, {n}) == 0\n",
        }
        for n, name in enumerate(("add", "subtract", "double", "halve"))
    ],
    "mbpp/full/test": [
        {
            "task_id": n,
            "text": f"Write a function to give {n}.",
            "code": f"def give_{n}():\r\n    return {n}",
            "test_list": [f"assert give_{n}() == {n}", f"assert give_{n}() > 0 ", "assert True"],
            "test_setup_code": "",
            "challenge_test_list": [],
        }
        for n in (11, 12, 13)
    ],
}


@dataclass(frozen=True)
class Case:
    """One of lm-eval's tasks, and ours where that is another.

    Args:
        name: lm-eval's.
        config: lm-eval's file, inside its folder of tasks.
        folder: where ``--data-dir`` has the files.
        ours: name of our task, None: the same.
        shots: examples in front of a question.
        has_same_filter: whether filtered answers and scores can be compared, or the prompts only.
    """

    name: str
    config: str
    folder: str
    ours: str | None = None
    shots: int = 0
    has_same_filter: bool = True
    splits: tuple[str, ...] = ("test", "train")


CASES = (
    Case("gsm8k", "gsm8k/gsm8k.yaml", "gsm8k/main", shots=2),
    Case("gsm8k_cot", "gsm8k/gsm8k-cot.yaml", "gsm8k/main", shots=8),
    Case("arc_challenge", "arc/arc_challenge.yaml", "ai2_arc/ARC-Challenge"),
    Case("arc_challenge_chat", "arc/arc_challenge_chat.yaml", "ai2_arc/ARC-Challenge"),
    Case("mmlu_anatomy", "mmlu/default/mmlu_anatomy.yaml", "mmlu/anatomy", shots=2, splits=("test", "dev")),
    Case(
        "mmlu_anatomy_generative", "mmlu/generative/mmlu_anatomy.yaml", "mmlu/anatomy", shots=2, splits=("test", "dev")
    ),
    Case(
        "mmlu_anatomy_generative",
        "mmlu/generative/mmlu_anatomy.yaml",
        "mmlu/anatomy",
        "dllm_mmlu_letter",
        2,
        False,
        ("test", "dev"),
    ),
    Case("humaneval", "humaneval/humaneval.yaml", "openai_humaneval", splits=("test",)),
    Case("humaneval", "humaneval/humaneval.yaml", "openai_humaneval", "dllm_humaneval", splits=("test",)),
    Case(
        "humaneval_instruct",
        "humaneval/humaneval_instruct.yaml",
        "openai_humaneval",
        "dllm_humaneval_instruct",
        splits=("test",),
    ),
    Case("mbpp", "mbpp/mbpp.yaml", "mbpp/full", shots=3, splits=("test", "prompt")),
    Case("mbpp", "mbpp/mbpp.yaml", "mbpp/full", "dllm_mbpp", 3, splits=("test", "prompt")),
    Case("mbpp_instruct", "mbpp/mbpp_instruct.yaml", "mbpp/full", "dllm_mbpp_instruct", 3, splits=("test", "prompt")),
)


class Answers:
    """What both models say: by the prompt, one of a few texts on which filters have something to do."""

    TEXTS = (
        "so 3 * 4 = 12.\n#### 12\nQuestion: more", "The answer is $1,234. ", "B", " C. because", "(D) it is", "no idea",
        "    return left + right\n", "    return 1\n```\nThat is all.", "\ndef give_11():\n    return 11\n```\nDone",
        "```python\ndef give_12():\n    return 12\n```", "def give_11():\n    return 11\n[DONE]",
    )  # fmt: skip

    @classmethod
    def text(cls, prompt: str) -> str:
        return cls.TEXTS[int(hashlib.sha256(prompt.encode()).hexdigest(), 16) % len(cls.TEXTS)]

    @classmethod
    def likelihood(cls, context: str, continuation: str) -> tuple[float, bool]:
        number = int(hashlib.sha256((context + continuation).encode()).hexdigest()[:4], 16)
        return -float(number), number % 2 == 0


def generate_until(self: object, requests: Sequence) -> list[str]:
    return [Answers.text(request.args[0]) for request in requests]


def loglikelihood(self: object, requests: Sequence) -> list[tuple[float, bool]]:
    return [Answers.likelihood(*request.args) for request in requests]


class Plain(LM):
    """A model of lm-eval that is none of ours."""

    tokenizer_name = "llada-tiny"
    generate_until, loglikelihood = generate_until, loglikelihood

    def __init__(self) -> None:
        super().__init__()
        self.tokenizer = load("llada-tiny", device="cpu").tokenizer

    def loglikelihood_rolling(self, requests: Sequence) -> list[float]:
        raise NotImplementedError

    def chat_template(self, chat_template: bool | str = False) -> str:
        return self.tokenizer.chat_template

    def apply_chat_template(self, history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return self.tokenizer.apply_chat_template(
            history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )


class Scorer:
    """In place of the program that lm-eval's code tasks download: nothing passes."""

    def compute(self, references: Sequence, predictions: Sequence, k: Sequence[int]) -> tuple[dict, dict]:
        return {f"pass@{number}": 0.0 for number in k}, {}


def write_files(folder: Path) -> Path:
    """The made files, as ``--data-dir`` has them."""
    examples = [{**row, "test_setup_code": "", "challenge_test_list": []} for row in stock_examples()]
    for name, rows in {**FILES, "mbpp/full/prompt": examples}.items():
        file = folder / f"{name}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def stock_examples() -> Rows:
    """The examples of MBPP, which lm-eval has in its code and the data set in its split ``prompt``."""
    source = (STOCK / "mbpp/utils.py").read_text(encoding="utf-8")
    module: dict = {"__name__": "stock"}
    with mock.patch("evaluate.load", return_value=Scorer()):
        exec(compile(source, "utils.py", "exec"), module)
    rows = module["list_fewshot_samples"]()
    return [{name: row[name] for name in row if name != "is_fewshot"} for row in rows]


def by_lm_eval(case: Case, data: Path, folder: Path, *, chat: bool) -> dict:
    """The results of lm-eval alone, on the files as it reads local files."""
    files = {split: str(data / case.folder / f"{split}.jsonl") for split in case.splits}
    config = folder / "local.yaml"
    lines = [f"include: {STOCK / case.config}", "task: local", "tag: null", "dataset_path: json", "dataset_name: null"]
    config.write_text("\n".join([*lines, f"dataset_kwargs: {json.dumps({'data_files': files})}"]), encoding="utf-8")
    with mock.patch("evaluate.load", return_value=Scorer()):
        return simple_evaluate(
            Plain(),
            tasks=["local"],
            task_manager=TaskManager(include_path=str(folder), include_defaults=False),
            num_fewshot=case.shots,
            apply_chat_template=chat,
            fewshot_as_multiturn=chat,
            confirm_run_unsafe_code=True,
            bootstrap_iters=0,
            **SEEDS,
        )


def by_us(case: Case, data: Path, folder: Path, *, chat: bool) -> tuple[dict, list[dict]]:
    """Scores and samples of ``dllm eval`` on the same files."""
    name, out = case.ours or case.name, folder / "out"
    given = ["--tasks", name, "--num-fewshot", str(case.shots), "--chat" if chat else "--raw", "--log-samples"]
    stock = ["--include", str((STOCK / case.config).parent)]
    where = ["--data-dir", str(data), "--output", str(out), "--model", "llada-tiny", "--device", "cpu"]
    nothing_passes = mock.patch.object(execution, "run_program", return_value=execution.Outcome(False, "", True))
    said = mock.patch.multiple(DiffusionLM, generate_until=generate_until, loglikelihood=loglikelihood)
    with nothing_passes, said:
        assert main(["eval", *given, *stock, *where, "--allow-code-execution"]) == 0
    (file,) = out.glob("samples-*.jsonl")
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    (task,) = json.loads((out / "results.json").read_text(encoding="utf-8"))["tasks"]
    return task["metrics"][name], rows


def prompts_of(rows: Rows) -> list[list[str]]:
    """What was asked of each document: the text, and the text that is scored or the stop strings."""
    kinds = [row for row in rows if row["filter"] == rows[0]["filter"]]
    asked = [[[part if isinstance(part, str) else part["until"] for part in one] for one in row["arguments"]]
             for row in kinds]  # fmt: skip
    return sorted(map(json.dumps, asked))


def answers_of(rows: Rows) -> list[str]:
    """What the filters made of the answers, by filter and prompt."""
    return sorted(json.dumps([row["filter"], row["arguments"][0][0], row["filtered_resps"]]) for row in rows)


def compare(case: Case, data: Path, folder: Path, *, chat: bool) -> int:
    """Assert that both are the same; how many documents were asked."""
    want, (scores, rows) = by_lm_eval(case, data, folder, chat=chat), by_us(case, data, folder, chat=chat)
    stock = want["samples"]["local"]
    if case.ours and case.folder.startswith("mmlu"):
        rows = [row for row in rows if row["doc"]["subject"] == Path(case.folder).name]
    assert prompts_of(rows) == prompts_of(stock)
    if case.ours is None:
        assert answers_of(rows) == answers_of(stock)
        numbers = {name: value for name, value in want["results"]["local"].items() if "," in name and "err" not in name}
        assert {name: scores[name] for name in numbers} == numbers
    elif case.has_same_filter:
        for row in (*rows, *stock):
            row["filter"] = "program"
        assert [flat(one) for one in answers_of(rows)] == [flat(one) for one in answers_of(stock)]
    return len(prompts_of(rows))


def flat(answer: str) -> tuple[str, str]:
    """Prompt and program; a program may stand in a list of samples or alone."""
    _, prompt, found = json.loads(answer)
    while isinstance(found, list):
        (found,) = found
    return prompt, found


@pytest.fixture(autouse=True, scope="module")
def _forgotten_task_modules() -> Iterator[None]:
    """lm-eval keeps the modules of its tasks, here with a scorer that other tests must not meet."""
    yield
    for name, module in list(sys.modules.items()):
        if hasattr(module, "__mtime__") and str(module.__file__).startswith(str(STOCK)):
            del sys.modules[name]


@pytest.mark.parametrize("case", CASES, ids=[case.ours or case.name for case in CASES])
def test_prompts_filters_and_scores_are_those_of_lm_eval(case, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert compare(case, write_files(tmp_path / "data"), tmp_path, chat=False) == len(FILES[f"{case.folder}/test"])


@pytest.mark.parametrize("case", [CASES[6], CASES[-1]], ids=lambda case: case.ours or case.name)
def test_chats_are_those_of_lm_eval(case, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert compare(case, write_files(tmp_path / "data"), tmp_path, chat=True) == len(FILES[f"{case.folder}/test"])
