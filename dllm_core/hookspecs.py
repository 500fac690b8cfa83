"""The whole plugin contract: four hooks and the spec dataclasses that they yield.

A hook returns an iterable of specs. A spec carries *import strings* (``"package.module:attribute"``), never objects,
so that listing what is installed imports nothing heavy. Standard library and pluggy only.

Example, the ``plugin.py`` of a family::

    from dllm_core import ModelAdapterSpec, hookimpl

    @hookimpl
    def dllm_model_adapters():
        yield ModelAdapterSpec(
            name="acme",
            summary="Acme masked diffusion models",
            source="arXiv:2502.09992",
            target="dllm_acme.adapter:AcmeAdapter",
            model_types=("acme",),
        )
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import pluggy

ENTRY_POINT_GROUP = "dllm"

hookspec = pluggy.HookspecMarker("dllm")
hookimpl = pluggy.HookimplMarker("dllm")


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What every component says of itself.

    Args:
        name: short name, unique within the plugin; the full id is ``plugin/name``.
        summary: one line for listings.
        target: import string ``"package.module:attribute"`` of the component.
        source: what it follows: paper and equation, or upstream file at a commit; ``"original"`` where it is new.
    """

    name: str
    summary: str
    target: str
    source: str


@dataclass(frozen=True, kw_only=True)
class ObjectiveSpec(Spec):
    """A training objective; the target is a subclass of ``dllm_core.objectives.Objective``."""


@dataclass(frozen=True, kw_only=True)
class BundledCheckpoint:
    """A small trained checkpoint inside the plugin's wheel, loaded by ``dllm.load(name)``.

    Args:
        name: what the user types.
        summary: one line for listings.
        resource: ``"package:relative/folder"`` of the checkpoint folder inside an importable package.
        demo_prompts: prompts that show what it can do; ``dllm run`` without a prompt uses them.
        max_new_tokens: length of a completion, in tokens, that ``dllm run`` takes where it is not told; None: the
            sampler's default.
        exercises: import string of a function ``(count, seed)`` that gives as many prompts with known answers, as
            lines of a prompts file (``{"prompt": ..., "answer": ...}``); ``dllm bench`` measures accuracy on them.
    """

    name: str
    summary: str
    resource: str
    demo_prompts: tuple[str, ...] = ()
    max_new_tokens: int | None = None
    exercises: str | None = None


@dataclass(frozen=True, kw_only=True)
class ModelAdapterSpec(Spec):
    """A model family; the target is a subclass of ``dllm_core.models.ModelAdapter``.

    Args:
        model_types: the ``model_type`` values in ``config.json`` that this adapter serves.
        bundled: checkpoints that the plugin ships.
        converter: import string of a function that makes such a model of a checkpoint of another kind, for
            ``dllm convert --to``; its arguments are those of ``dllm_core.models.converting.Converter``.
        converts: the ``model_type`` values that it takes; `dllm_core.load` names the command to whoever loads one.
    """

    model_types: tuple[str, ...]
    bundled: tuple[BundledCheckpoint, ...] = ()
    converter: str | None = None
    converts: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SamplerSpec(Spec):
    """A sampler; the target is a subclass of ``dllm_core.samplers.Sampler``.

    Args:
        defaults: options that differ from the target's own defaults: a preset over the same loop.
        families: names of the adapters, of the same plugin, whose checkpoints generate like this: ``dllm run`` takes it
            for them, the first of several, and for no other where it is not named. Empty: it is for any family.
        edits: changes texts that are given to it, see `dllm_core.editing.EditSession`: ``dllm edit`` takes the first
            such sampler.
    """

    defaults: dict[str, object] = field(default_factory=dict)
    families: tuple[str, ...] = ()
    edits: bool = False


@dataclass(frozen=True, kw_only=True)
class CommitRuleSpec(Spec):
    """A commit rule (which proposals are written this step); the target is a ``dllm_core.samplers.CommitRule``."""


@dataclass(frozen=True, kw_only=True)
class CachePolicySpec(Spec):
    """A cache policy (which positions are computed anew); the target is a ``dllm_core.samplers.CachePolicy``."""


@dataclass(frozen=True, kw_only=True)
class EvalTaskSpec(Spec):
    """An evaluation task; the target is a folder or file inside a package, ``"package:relative/path"``."""


@dataclass(frozen=True, kw_only=True)
class EvalPresetSpec(Spec):
    """Evaluation settings matched to a paper; the target is a YAML file, ``"package:relative/path"``."""


@hookspec
def dllm_objectives() -> Iterable[ObjectiveSpec]:
    """Training objectives that this plugin offers. Called once a process; must not import torch."""


@hookspec
def dllm_model_adapters() -> Iterable[ModelAdapterSpec]:
    """Model families that this plugin serves, with the checkpoints it ships. Must not import torch."""


@hookspec
def dllm_samplers() -> Iterable[SamplerSpec | CommitRuleSpec | CachePolicySpec]:
    """Samplers, commit rules and cache policies that this plugin offers. Must not import torch."""


@hookspec
def dllm_eval_tasks() -> Iterable[EvalTaskSpec | EvalPresetSpec]:
    """Evaluation tasks and presets that this plugin offers. Must not import torch."""
