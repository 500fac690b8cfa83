"""From a component's name to its spec, and only when it is used to the object itself.

A component's full id is ``plugin/name``; the short name works while it is unique. Kinds are the words that a user
reads: ``objective``, ``adapter``, ``sampler``, ``commit rule``, ``cache policy``, ``eval task``, ``eval preset``.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from dllm_core.errors import AmbiguousComponentError, ComponentLoadError, UnknownComponentError, did_you_mean
from dllm_core.hookspecs import BundledCheckpoint, EvalPresetSpec, EvalTaskSpec, ModelAdapterSpec, Spec
from dllm_core.plugins import KINDS, import_string, plugin_host

SpecT = TypeVar("SpecT", bound=Spec)
NamedT = TypeVar("NamedT", bound="Component | Checkpoint")


@dataclass(frozen=True)
class Component(Generic[SpecT]):
    """A spec and the name of the plugin that offers it."""

    plugin: str
    spec: SpecT

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def full_id(self) -> str:
        """``plugin/name``."""
        return f"{self.plugin}/{self.spec.name}"


@dataclass(frozen=True)
class Checkpoint:
    """A bundled checkpoint and the name of the plugin that ships it."""

    plugin: str
    checkpoint: BundledCheckpoint

    @property
    def name(self) -> str:
        return self.checkpoint.name

    @property
    def full_id(self) -> str:
        return f"{self.plugin}/{self.checkpoint.name}"


def components(kind: str) -> list[Component]:
    """Every installed component of a kind, the core's first, then by plugin name."""
    return [Component(plugin, spec) for plugin, spec in plugin_host().specs(KINDS[kind])]


def find(kind: str, name: str) -> Component:
    """The component that `name` (full id, or short name while unique) means.

    Raises:
        UnknownComponentError: there is none.
        AmbiguousComponentError: a short name that several plugins use.
    """
    known = components(kind)
    found = _one(kind, name, known)
    if found is None:
        raise _unknown(kind, name, known)
    return found


def load(kind: str, name: str) -> object:
    """The object behind a component: what its import string names; of tasks and presets the path of their file.

    Raises:
        UnknownComponentError, AmbiguousComponentError: as `find`.
        ComponentLoadError: its target does not import or does not exist; ``__cause__`` has the reason.
    """
    component = find(kind, name)
    spec = component.spec
    try:
        if isinstance(spec, (EvalTaskSpec, EvalPresetSpec)):
            return resource_path(spec.target)
        return import_string(spec.target)
    except ComponentLoadError as error:
        text = f"{kind} {component.full_id!r} cannot be loaded, which is for the plugin {component.plugin!r} to mend: "
        raise ComponentLoadError(f"{text}{error}") from error.__cause__


def adapter_for_model_type(model_type: str) -> Component[ModelAdapterSpec] | None:
    """The adapter that serves a checkpoint's ``model_type``, None where no installed plugin does.

    Raises:
        AmbiguousComponentError: several plugins serve it.
    """
    serving = [component for component in components("adapter") if model_type in component.spec.model_types]
    if len(serving) > 1:
        choices = " or ".join(f"adapter={component.full_id!r}" for component in serving)
        raise AmbiguousComponentError(f"several plugins serve model_type {model_type!r}; choose with {choices}")
    return serving[0] if serving else None


def bundled_checkpoints() -> list[tuple[str, BundledCheckpoint]]:
    """Pairs (plugin name, checkpoint) of every trained checkpoint that comes inside a plugin."""
    return [(entry.plugin, entry.checkpoint) for entry in _checkpoints()]


def find_bundled(name: str) -> Path | None:
    """The folder of the bundled checkpoint `name` (or ``plugin/name``), None where no plugin ships one of that name.

    Raises:
        AmbiguousComponentError: a short name that several plugins use.
        ComponentLoadError: the plugin names a folder that it does not contain.
    """
    found = _one("bundled checkpoint", name, _checkpoints())
    return None if found is None else resource_path(found.checkpoint.resource)


def resource_path(resource: str) -> Path:
    """The file or folder that ``"package:relative/path"`` names, found without importing the package.

    Raises:
        ComponentLoadError: no such package, or nothing there.
    """
    package, _, relative = resource.partition(":")
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError) as error:
        raise ComponentLoadError(f"cannot find {resource!r}: {error}") from error
    if spec is None or not relative:
        raise ComponentLoadError(f"cannot find {resource!r}: no package {package!r} or no path after it")
    for folder in spec.submodule_search_locations or ():
        if (path := Path(folder, relative)).exists():
            return path
    raise ComponentLoadError(f"cannot find {resource!r}: the package {package!r} holds no {relative!r}")


def missing_plugins_hint() -> str:
    """One sentence on the plugins that did not load and may provide what was not found; empty where all did."""
    records = plugin_host().records
    failed = ", ".join(repr(record.name) for record in records if record.state not in ("ok", "disabled"))
    disabled = ", ".join(repr(record.name) for record in records if record.state == "disabled")
    hints = [
        f" Plugin {failed} failed to load and may provide it ('dllm plugins' says why)." if failed else "",
        f" Plugin {disabled} is switched off by DLLM_PLUGINS." if disabled else "",
    ]
    return "".join(hints)


def _checkpoints() -> list[Checkpoint]:
    return [
        Checkpoint(component.plugin, checkpoint)
        for component in components("adapter")
        for checkpoint in component.spec.bundled
    ]


def _one(kind: str, name: str, known: Iterable[NamedT]) -> NamedT | None:
    """The one that `name` means, None where there is none."""
    known = list(known)
    matches = [entry for entry in known if entry.full_id == name] or [entry for entry in known if entry.name == name]
    if len(matches) > 1:
        owners = " and ".join(entry.plugin for entry in matches)
        choices = " or ".join(entry.full_id for entry in matches)
        raise AmbiguousComponentError(f"{kind} {name!r} is offered by {owners}; write {choices}")
    return matches[0] if matches else None


def _unknown(kind: str, name: str, known: list[Component]) -> UnknownComponentError:
    names = [entry.name for entry in known]
    # A short name is what people type; the full id stands where the short one would be ambiguous.
    shown = [entry.full_id if names.count(entry.name) > 1 else entry.name for entry in known]
    suggestion = did_you_mean(name, [*shown, *(entry.full_id for entry in known)])
    installed = ", ".join(shown) or "none"
    return UnknownComponentError(
        f"unknown {kind} {name!r}.{suggestion} Installed: {installed}.{missing_plugins_hint()}"
    )
