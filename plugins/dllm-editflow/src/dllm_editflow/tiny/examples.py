"""The exercises as training examples: the right text, and the draft that it is made from."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from dllm_llada.tiny.tokenizer import build_tokenizer

from dllm_editflow.tiny.functions import CLEAN_SHARE, MOST_PRACTISED, exercises

Example = dict[str, list[int]]
GIVEN = -100  # label of a token that is never edited


def examples(
    *, split: str, seed: int, count: int, most_functions: int = 1, clean_share: float = CLEAN_SHARE
) -> Iterator[Example]:
    """`count` texts behind a beginning of sequence, each with its draft in ``source_ids``.

    Args:
        most_functions, clean_share: as of `dllm_editflow.tiny.functions.exercises`.
    """
    tokenizer = build_tokenizer()
    options = {"most_errors": MOST_PRACTISED, "most_functions": most_functions, "clean_share": clean_share}
    for exercise in islice(exercises(split, seed, **options), count):
        ids, draft = (
            tokenizer(each, add_special_tokens=False)["input_ids"] for each in (exercise.text, exercise.draft)
        )
        bos = tokenizer.bos_token_id
        yield {"input_ids": [bos, *ids], "labels": [GIVEN, *ids], "source_ids": draft}
