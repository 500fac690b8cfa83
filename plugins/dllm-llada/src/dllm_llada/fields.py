"""Fields of a published configuration that ask for what a model here does not compute."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dllm_core.errors import ModelLoadError


def take_computed(title: str, fields: dict[str, Any], computed: Mapping[str, tuple[object, ...]]) -> None:
    """Take these fields out, once they are found to hold what the model computes.

    Args:
        title: of the configuration, for the message.
        fields: those that were given; the ones named are removed.
        computed: the values that each field may have; one that is absent has the first.

    Raises:
        ModelLoadError: a field holds another value.
    """
    for name, allowed in computed.items():
        value = fields.pop(name, allowed[0])
        if value not in allowed:
            raise ModelLoadError(
                f"{title} config has {name}={value!r}, which this model does not compute; it must be {allowed[0]!r}"
            )
