"""From a component's name to its spec, and only when it is used to the object itself.

A component's full id is ``plugin/name``; the short name works while it is unique. Kinds are the words that a user
reads: ``objective``, ``adapter``, ``sampler``, ``commit rule``, ``cache policy``, ``eval task``, ``eval preset``.
"""

from __future__ import annotations

import importlib.machinery
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
        raise ComponentLoadError(
            f"{kind} {component.full_id!r} of plugin {component.plugin!r} cannot be loaded: {error}"
            f"   [dllm plugins show {component.plugin}]"
        ) from error.__cause__


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
    """Pairs (plugin name, checkpoint) of every trained checkpoint that comes inside a plugin.

    Those with something to show (`BundledCheckpoint.demo_prompts`) come first: where no model is named, the first is
    taken, and others may be made for other things than prompts.
    """
    found = [(entry.plugin, entry.checkpoint) for entry in _checkpoints()]
    return sorted(found, key=lambda pair: not pair[1].demo_prompts)


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


def target_problem(spec: Spec) -> str | None:
    """Why the target of a component cannot be there, found without importing it; None where it seems right."""
    if isinstance(spec, (EvalTaskSpec, EvalPresetSpec)):
        try:
            resource_path(spec.target)
        except ComponentLoadError as error:
            return str(error)
        return None
    module, _, attribute = spec.target.partition(":")
    file = _module_file(module)
    if file is None:
        return f"there is no module {module!r}"
    try:
        names = _top_level_names(file) if file.suffix == ".py" else None
    except (SyntaxError, ValueError) as error:
        return f"module {module!r} is not Python: {error}"
    if names is not None and attribute.partition(".")[0] not in names:
        return f"module {module!r} has no {attribute!r}.{did_you_mean(attribute, names)}"
    return None


def _module_file(module: str) -> Path | None:
    """The file of a module, without importing its parents."""
    first, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(first)
    except (ImportError, ValueError):
        return None
    for depth in range(len(rest)):
        if spec is None or spec.submodule_search_locations is None:
            return None
        name = ".".join((first, *rest[: depth + 1]))
        spec = importlib.machinery.PathFinder.find_spec(name, spec.submodule_search_locations)
    return Path(spec.origin) if spec is not None and spec.origin else None


def _top_level_names(file: Path) -> set[str] | None:
    """The names that a module's source binds; None where running it could bind others."""
    import ast

    names: set[str] = set()
    for statement in ast.parse(file.read_bytes()).body:
        if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(statement.name)
            continue
        for node in ast.walk(statement):
            if isinstance(node, ast.alias):
                names.add(node.asname or node.name.partition(".")[0])
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
            elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                names.add(node.name)
    return None if names & {"*", "__getattr__"} else names


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
