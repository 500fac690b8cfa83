"""`EvalTaskTests`: what every evaluation task must hold. Skipped where lm-eval is not installed."""

from __future__ import annotations

import collections
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from dllm_core.conformance.expect import expect, expect_equal
from dllm_core.conformance.sampler_chance import process_seed
from dllm_core.conformance.suite import requires
from dllm_core.conformance.task_suite import Doc, TaskSuite, content, golds_of, half

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask


class EvalTaskTests(TaskSuite):
    """The checks of an evaluation task; a subclass names it, and gives documents where its data lie on the hub.

    Attributes are those of `dllm_core.conformance.task_suite.TaskSuite`.

    Example:
        >>> class TestSums(EvalTaskTests):
        ...     component = "acme/sums"
        ...     fixture = {"train": "tests/sums_train.jsonl", "test": "tests/sums_test.jsonl"}
    """

    def test_every_file_is_a_task(self) -> None:
        """lm-eval finds a task or group in every YAML file, and no name twice.

        Why: its index passes over files that it cannot read, and over second tasks of a name, without a word; the task
        is then unknown to whoever asks for it.

        Mend: read the file with ``lm_eval.tasks._yaml_loader.load_yaml``; begin the names of templates with ``_``.
        """
        manager, files = self.manager(), self.files()
        expect(files, f"there is no YAML file in {self.load_component()}; write the task's configuration there")
        found = {entry.yaml_path.resolve() for entry in manager.task_index.values() if entry.yaml_path is not None}
        lost = [file.name for file in files if file not in found]
        expect(not lost, f"lm-eval finds nothing new in {', '.join(lost)}; look for YAML errors and names used twice")
        expect(self.entries(manager), "there is no task, only groups; say 'task:' in one of the files")

    def test_names_are_its_own(self) -> None:
        """The names of tasks and groups begin with the plugin's name.

        Why: lm-eval has 14,000 names of its own, and a task of the same name replaces one of them silently.

        Mend: call it ``<plugin>_<task>``, or declare another ``prefix``.
        """
        manager, prefix = self.manager(), self.expected_prefix()
        groups = [name for name in manager.all_groups if manager.task_index[name].yaml_path.resolve() in self.files()]
        strange = [name for name in [*self.entries(manager), *groups] if not name.startswith(prefix)]
        expect(not strange, f"names {strange} do not begin with {prefix!r}; rename, or declare another prefix")

    def test_it_loads_offline(self) -> None:
        """Every task loads without a network, from any working folder, and has documents.

        Why: a check that needs the hub is run by nobody; paths that are relative to the working folder work in one.

        Mend: ship the data and read them with ``custom_dataset: !function`` and ``Path(__file__).parent``, or keep the
        hub's name and give the suite a ``fixture``.
        """
        try:
            tasks = self.load()
        except loading_errors() as error:
            raise AssertionError(
                f"the task does not load: {type(error).__name__}: {error}; load it with lm_eval.tasks.TaskManager"
            ) from error
        for name, task in tasks.items():
            expect(len(task.eval_docs) >= 2, f"{name} has {len(task.eval_docs)} documents; the checks need two or more")

    def test_prompts_and_targets_are_there(self) -> None:
        """Every document gives a prompt, a target, and choices of which one is right.

        Why: a misspelt field renders as nothing; lm-eval tries the first document only.

        Mend: compare the fields in ``doc_to_text``, ``doc_to_target`` and ``doc_to_choice`` with those of the data.
        """
        for name, number, task, doc in self._documents():
            where = f"document {number} of {name}"
            context = task.fewshot_context(doc, 0)
            prompts = context if isinstance(context, list) else [context]
            if task.OUTPUT_TYPE != "loglikelihood_rolling":
                expect(all(prompt.strip() for prompt in prompts), f"{where} has an empty prompt; name fields it has")
            target = task.doc_to_target(doc)
            expect(str(target).strip() and target != [], f"{where} has no target; name a field it has")
            if task.OUTPUT_TYPE == "multiple_choice":
                choices, golds = task.doc_to_choice(doc), golds_of(task, doc)
                apart = task.multiple_input or len(set(choices)) == len(choices) >= 2
                expect(apart, f"{where} has the choices {choices}; give two or more, all different")
                inside = golds and all(0 <= gold < len(choices) for gold in golds)
                expect(inside, f"{where} has target {target!r}, none of its {len(choices)} choices; count from 0")

    @requires("bounded")
    def test_right_answers_score_one(self) -> None:
        """A model that gives the targets, cut at the stop strings, scores 1 in every metric.

        Why: a filter that does not find the answer, or a stop string inside it, makes the best model look useless.

        Mend: run the target through the filters by hand; override `right_answer` where a target is no answer.
        """
        for name, task in self.load().items():
            for metric, score in self.evaluate(task, lambda doc: True).items():
                expect(abs(score - 1) < 1e-9, f"right answers to {name} score {score:.4g} in {metric}, not 1")

    @requires("bounded")
    def test_wrong_answers_score_nothing(self) -> None:
        """A model that is always wrong scores 0 in every metric.

        Why: a metric that counts any answer, or an empty one, as right is found by no good model.

        Mend: look at what the filters make of "no idea"; override `wrong_answer` where that is right.
        """
        for name, task in self.load().items():
            for metric, score in self.evaluate(task, lambda doc: False).items():
                expect(abs(score) < 1e-9, f"wrong answers to {name} score {score:.4g} in {metric}, not 0")

    @requires("bounded")
    def test_scores_lie_in_bounds(self) -> None:
        """A model that is right about some documents scores above 0 and below 1.

        Why: sums in place of means, and scores of the best document, are right at both ends and nowhere between.

        Mend: ``aggregation: mean``, or a function of all documents that stays in [0, 1].
        """
        for name, task in self.load().items():
            right, total = len(task.eval_docs) // 2, len(task.eval_docs)
            for metric, score in self.evaluate(task, half(task)).items():
                says = f"{right} right answers of {total} to {name} score {score:.4g} in {metric}"
                expect(0 < score < 1, f"{says}; a score between 0 and 1 is expected")

    def test_the_order_of_documents_is_irrelevant(self) -> None:
        """The same documents in another order give the same scores.

        Why: results are compared between runs that shard, sort or sample their documents.

        Mend: let prompts and aggregation depend on the documents alone, not on their number or neighbours.
        """
        for name, task in self.load().items():
            want = self.evaluate(task, half(task))
            self.arrange(task, lambda rows: list(rows)[::-1])
            self._expect_scores(self.evaluate(task, half(task)), want, f"{name} backwards, and forwards")

    def test_the_same_every_time(self) -> None:
        """A task that is loaded anew asks the same prompts in the same order and gives the same scores.

        Why: prompts drawn from the process's random numbers make every comparison a matter of luck.

        Mend: draw with ``random.Random(seed)`` from a fixed seed or from the document.
        """
        prompts: dict[int, list] = {}
        scores: dict[int, dict] = {}
        for state in (1, 2):
            with process_seed(state):
                tasks = self.load()
                prompts[state] = [
                    (task.fewshot_context(doc, 0), task.doc_to_target(doc))
                    for task in tasks.values()
                    for doc in task.eval_docs
                ]
            scores[state] = {n: self.evaluate(t, half(t), state=state) for n, t in tasks.items()}
        for first, second in zip(prompts[1], prompts[2], strict=True):
            expect_equal(second, first, "a prompt and its target when the process's generators stand elsewhere")
        for name in scores[1]:
            self._expect_scores(scores[2][name], scores[1][name], f"{name} again, and at first")

    def test_shots_are_not_the_questions(self) -> None:
        """Few-shot examples are none of the documents that are asked.

        Why: without ``fewshot_split`` lm-eval takes the examples from the test documents where there is no other split,
        and the answer stands in the prompt.

        Mend: name a ``fewshot_split``, or say ``num_fewshot: 0``, which cannot be overridden.
        """
        manager = self.manager()
        configured = {name: config.get("num_fewshot") for name, config in self.entries(manager).items()}
        for name, task in self.load().items():
            if configured.get(name) == 0:
                continue
            asked = collections.Counter(content(doc) for doc in task.eval_docs)
            shots = [content(doc) for doc in task.fewshot_docs() or ()]
            shared = sum(shot in asked for shot in shots)
            expect(not shared, f"{shared} of {len(shots)} few-shot examples of {name} are asked too; use another split")

    def test_the_version_is_stated(self) -> None:
        """``metadata: version`` is a number.

        Why: two scores compare only when the prompt, the filters and the data are the same.

        Mend: write ``metadata: {version: 1.0}``, and raise it with every change that moves scores.
        """
        for name, config in self.entries(self.manager()).items():
            version = (config.get("metadata") or {}).get("version")
            stated = isinstance(version, (int, float)) and not isinstance(version, bool)
            expect(stated, f"{name} has the version {version!r}; write metadata: {{version: 1.0}}")

    def test_metrics_say_what_they_are(self) -> None:
        """Every metric says how it is aggregated and whether higher is better.

        Why: lm-eval guesses what is missing, with a warning that nobody reads among the others.

        Mend: write ``metric_list`` with ``metric``, ``aggregation`` and ``higher_is_better``.
        """
        for name, config in self.entries(self.manager()).items():
            metrics = config.get("metric_list") or []
            expect(metrics, f"{name} has no metric_list; write metric, aggregation and higher_is_better")
            for metric in metrics:
                missing = [key for key in ("aggregation", "higher_is_better") if key not in metric]
                expect(not missing, f"metric {metric.get('metric')} of {name} does not say {' and '.join(missing)}")

    def test_generation_ends(self) -> None:
        """Tasks that generate say where an answer ends and how long it may be.

        Why: lm-eval falls back on the few-shot delimiter and each model on its own length; a diffusion model computes
        the whole canvas, so the length decides score and cost.

        Mend: write ``generation_kwargs: {until: ["\\n"], max_gen_toks: 256}``.
        """
        for name, config in self.entries(self.manager()).items():
            if config.get("output_type", "generate_until") != "generate_until":
                continue
            given = config.get("generation_kwargs") or {}
            expect("until" in given, f"{name} does not say where an answer ends; give generation_kwargs with until")
            length = given.get("max_gen_toks")
            fine = isinstance(length, int) and length > 0
            expect(fine, f"{name} has max_gen_toks {length!r}; say how many tokens an answer may have")

    def _documents(self) -> Iterator[tuple[str, int, ConfigurableTask, Doc]]:
        for name, task in self.load().items():
            for number, doc in enumerate(task.eval_docs):
                yield name, number, task, doc

    def _expect_scores(self, got: dict[str, float], want: dict[str, float], what: str) -> None:
        expect_equal(list(got), list(want), f"metrics of {what}")
        for metric in want:
            same = math.isclose(got[metric], want[metric], rel_tol=1e-9, abs_tol=1e-12)
            expect(same, f"{metric} of {what}: {got[metric]:.6g} and {want[metric]:.6g}; it must not change")


def loading_errors() -> tuple[type[Exception], ...]:
    """What a task that is wrong, or data that are not there, raise while lm-eval loads it."""
    from datasets.exceptions import DatasetsError
    from jinja2 import TemplateError
    from yaml import YAMLError

    usual = (ArithmeticError, AttributeError, ImportError, LookupError, NameError, OSError)
    return (*usual, RuntimeError, SyntaxError, TypeError, ValueError, DatasetsError, TemplateError, YAMLError)
