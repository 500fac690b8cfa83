"""Broken evaluation tasks: each is the arithmetic task with one defect, which one check of `EvalTaskTests` must catch.

A mutant is a list of edits to the files of the good task, written to a temporary folder when it is first asked for.
"""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

from dllm_core.conformance.eval_task import EvalTaskTests
from tests.conformance.mutant import Mutant, suite_for

ARITHMETIC = Path(__file__).parents[1] / "fixtures" / "arithmetic"
SUM, LARGER, ROWS = "arithmetic_sum.yaml", "arithmetic_larger.yaml", "rows.py"
OWN_DATA = "custom_dataset: !function rows.sums"

Edit = tuple[str, str, str]
"""File, what stands there once, what shall."""


@functools.cache
def written(edits: tuple[Edit, ...]) -> tempfile.TemporaryDirectory:
    """The good task with these edits; the folder goes when the process ends."""
    folder = tempfile.TemporaryDirectory()
    texts = {file.name: file.read_text(encoding="utf-8") for file in ARITHMETIC.iterdir() if file.is_file()}
    for file, old, new in edits:
        assert texts[file].count(old) == 1, f"{old!r} does not stand once in {file}"
        texts[file] = texts[file].replace(old, new)
    for name, text in texts.items():
        (Path(folder.name) / name).write_text(text, encoding="utf-8")
    return folder


def broken(check: str, name: str, why: str, *edits: Edit) -> Mutant:
    def load_component(self: EvalTaskTests) -> Path:
        return Path(written(edits).name)

    suite = suite_for(EvalTaskTests, name, load_component=load_component, prefix="arithmetic")
    return Mutant(check=f"EvalTaskTests.{check}", name=name, suite=suite, why=why)


BEST = (ROWS, "PAIRS = ", "def best(items: list) -> float:\n    return max(items)\n\n\nPAIRS = ")
LATE = (
    ROWS,
    "PAIRS = ",
    "def late(items: list) -> float:\n"
    "    return sum(n * item for n, item in enumerate(items)) / sum(range(len(items)))\n\n\nPAIRS = ",
)
SHUFFLED = (ROWS, '    return {"train"', '    import random\n\n    random.shuffle(rows)\n    return {"train"')
DOWNLOADED = (
    ROWS,
    '    return {"train"',
    '    from urllib.request import urlopen\n\n    urlopen("http://localhost:9/sums")\n    return {"train"',
)
METRICS = "metric_list:\n  - metric: exact_match\n    aggregation: mean\n    higher_is_better: true\n"
TEMPLATE = '"{{left}} + {{right}} ="'

MUTANTS = [
    broken("test_every_file_is_a_task", "broken_yaml", "holds a YAML file that is none", (LARGER, "task: ", "task: [")),
    broken(
        "test_every_file_is_a_task",
        "same_name_twice",
        "gives two tasks one name",
        (LARGER, "arithmetic_larger", "arithmetic_sum"),
    ),
    broken(
        "test_names_are_its_own", "takes_a_name", "takes the name of another's task", (SUM, "arithmetic_sum", "gsm8k")
    ),
    broken("test_it_loads_offline", "lives_on_the_hub", "needs the hub", (SUM, OWN_DATA, "dataset_path: acme/sums")),
    broken(
        "test_it_loads_offline",
        "relative_path",
        "finds its data from one working folder only",
        (SUM, OWN_DATA, "dataset_path: json\ndataset_kwargs: {data_files: {train: sums.jsonl, test: sums.jsonl}}"),
    ),
    broken("test_it_loads_offline", "downloads", "downloads its data by itself", DOWNLOADED),
    broken("test_it_loads_offline", "unknown_field", "asks for a field it has not", (SUM, TEMPLATE, '"{{lefft}}"')),
    broken("test_it_loads_offline", "one_document", "has one document", (ROWS, "rows[3:]", "rows[3:4]")),
    broken("test_it_loads_offline", "no_split", "says not which documents are asked", (SUM, "test_split: test\n", "")),
    broken(
        "test_prompts_and_targets_are_there",
        "empty_prompt",
        "asks nothing in its later documents",
        (SUM, TEMPLATE, '"{% if left < 9 %}{{left}} + {{right}} ={% endif %}"'),
    ),
    broken(
        "test_prompts_and_targets_are_there",
        "empty_target",
        "has no answer to its later documents",
        (SUM, '"{{answer}}"', '"{% if left < 9 %}{{answer}}{% endif %}"'),
    ),
    broken(
        "test_prompts_and_targets_are_there",
        "counts_too_far",
        "names a choice that is not there",
        (ROWS, "int(right > left)", "int(right > left) * (1 + (left > 5))"),
    ),
    broken(
        "test_prompts_and_targets_are_there",
        "same_choices",
        "gives the same choice twice",
        (ROWS, "str(left), str(right)", "str(left), str(left)"),
    ),
    broken(
        "test_right_answers_score_one", "stops_inside", "has a stop string inside answers", (SUM, '"\\n"', '"\\n", "1"')
    ),
    broken(
        "test_right_answers_score_one",
        "finds_nothing",
        "has a filter that finds no answer",
        (SUM, "(\\\\d+)", "#### (\\\\d+)"),
    ),
    broken(
        "test_wrong_answers_score_nothing",
        "ignores_everything",
        "ignores all that differs",
        (SUM, "metric: exact_match", 'metric: exact_match\n    regexes_to_ignore: [".*"]'),
    ),
    broken(
        "test_scores_lie_in_bounds",
        "counts_the_best",
        "scores the best document",
        (SUM, "aggregation: mean", "aggregation: !function rows.best"),
        BEST,
    ),
    broken(
        "test_the_order_of_documents_is_irrelevant",
        "weighs_late_ones",
        "weighs documents by their number",
        (SUM, "aggregation: mean", "aggregation: !function rows.late"),
        LATE,
    ),
    broken("test_the_same_every_time", "shuffles", "shuffles with the process's generator", SHUFFLED),
    broken(
        "test_shots_are_not_the_questions",
        "no_split_for_shots",
        "takes examples from the test documents",
        (LARGER, "num_fewshot: 0\n", ""),
    ),
    broken(
        "test_shots_are_not_the_questions",
        "overlapping_splits",
        "has splits that overlap (as in dllm, data/utils.py)",
        (ROWS, "rows[:3]", "rows[:4]"),
    ),
    broken("test_the_version_is_stated", "no_version", "states no version", (SUM, "metadata:\n  version: 1.0\n", "")),
    broken(
        "test_the_version_is_stated",
        "version_in_words",
        "has the version 'latest'",
        (SUM, "version: 1.0", "version: latest"),
    ),
    broken("test_metrics_say_what_they_are", "no_metrics", "names no metric", (SUM, METRICS, "")),
    broken(
        "test_metrics_say_what_they_are",
        "no_aggregation",
        "says not how scores add up",
        (SUM, "    aggregation: mean\n", ""),
    ),
    broken("test_generation_ends", "no_stop", "does not say where answers end", (SUM, '  until: ["\\n"]\n', "")),
    broken("test_generation_ends", "no_length", "does not say how long answers are", (SUM, "  max_gen_toks: 8\n", "")),
]
