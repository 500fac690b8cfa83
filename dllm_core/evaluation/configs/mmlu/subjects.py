"""MMLU as one task: the line in front of a question, and examples of the question's own subject."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

from lm_eval.api.task import ConfigurableTask

Doc = Mapping[str, Any]


class BySubject(ConfigurableTask):
    """A task whose examples are the first ones of the question's subject, which lm-eval has by a task for each.

    Args:
        config: the YAML file's content.
    """

    def __init__(self, config: Mapping[str, object]) -> None:
        super().__init__(config={name: value for name, value in config.items() if name != "class"})

    @cached_property
    def examples(self) -> dict[str, list[Doc]]:
        """The documents of the split of examples by their subject, in their order."""
        found: dict[str, list[Doc]] = {}
        for doc in self.fewshot_docs():
            found.setdefault(doc["subject"], []).append(doc)
        return found

    def fewshot_context(
        self,
        doc: Doc,
        num_fewshot: int,
        system_instruction: str | None = None,
        apply_chat_template: bool = False,
        fewshot_as_multiturn: bool = False,
        chat_template: Callable[..., str] | None = None,
        gen_prefix: str | None = None,
    ) -> str | list[str]:
        """The prompt, as lm-eval builds it; arguments are lm-eval's."""
        self.sampler.replace_df(self.examples.get(doc["subject"], []))
        return super().fewshot_context(
            doc,
            num_fewshot,
            system_instruction=system_instruction,
            apply_chat_template=apply_chat_template,
            fewshot_as_multiturn=fewshot_as_multiturn,
            chat_template=chat_template,
            gen_prefix=gen_prefix,
        )
