"""HellaSwag's documents with the texts cleaned as lm-eval cleans them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from datasets import Dataset


def lettered(documents: Dataset) -> Dataset:
    """Adds ``context`` and ``gold`` to each document, and cleans its ``endings``."""
    return Dataset.from_list([{**doc, **_lettered(doc)} for doc in documents])


def _lettered(doc: Mapping[str, Any]) -> dict[str, object]:
    context = f"{doc['activity_label']}: {doc['ctx_a']} {doc['ctx_b'].capitalize()}"
    return {"context": clean(context), "endings": [clean(one) for one in doc["endings"]], "gold": int(doc["label"])}


def clean(text: str) -> str:
    """A text without the marks that the WikiHow part of the data set has in it: ``[header]``, ``[title]`` ..."""
    without = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return without.replace("  ", " ")
