"""Finds the installed plugins and keeps a broken one from harming the others.

pluggy alone does not isolate: its loader stops at the first failing import, and one raising hook loses everybody's
results. So each entry point is loaded, and each hook implementation called, in a guard of its own, and what happened
is kept in a `PluginRecord`. This is the only module that catches exceptions broadly: it runs other people's code.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.metadata
import importlib.util
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint
from typing import Literal, TypeVar

import pluggy

from dllm_core import __version__, hookspecs
from dllm_core.compatibility import requirement_holds, requirement_on_core
from dllm_core.errors import ComponentLoadError, did_you_mean
from dllm_core.hookspecs import (
    ENTRY_POINT_GROUP,
    BundledCheckpoint,
    CachePolicySpec,
    CommitRuleSpec,
    EvalPresetSpec,
    EvalTaskSpec,
    ModelAdapterSpec,
    ObjectiveSpec,
    SamplerSpec,
    Spec,
)

T = TypeVar("T")
SpecT = TypeVar("SpecT", bound=Spec)
State = Literal["ok", "broken", "incompatible", "conflict", "disabled"]

CORE = "core"
# The core is found the way that everybody else is, only without asking what is installed.
CORE_ENTRY_POINT = EntryPoint(name=CORE, value="dllm_core.builtin", group=ENTRY_POINT_GROUP)

HOOKS: dict[str, tuple[type[Spec], ...]] = {
    "dllm_objectives": (ObjectiveSpec,),
    "dllm_model_adapters": (ModelAdapterSpec,),
    "dllm_samplers": (SamplerSpec, CommitRuleSpec, CachePolicySpec),
    "dllm_eval_tasks": (EvalTaskSpec, EvalPresetSpec),
}
KINDS: dict[str, type[Spec]] = {
    "objective": ObjectiveSpec,
    "adapter": ModelAdapterSpec,
    "sampler": SamplerSpec,
    "commit rule": CommitRuleSpec,
    "cache policy": CachePolicySpec,
    "eval task": EvalTaskSpec,
    "eval preset": EvalPresetSpec,
}
HEAVY_MODULES = ("datasets", "numpy", "torch", "transformers")
SLOW_SECONDS = 1.0
LONGEST_LINE = 300


class PluginError(Exception):
    """What a plugin does against the contract; only ever recorded, never raised to a user."""


@dataclass(frozen=True, kw_only=True)
class PluginRecord:
    """What became of one plugin.

    Args:
        name: the entry point's name.
        distribution, version: the installed package; several, joined by commas, where they conflict.
        target: the module that the entry point names.
        requires_core: the package's requirement on dllm-core, as written; None where it states none.
        state: ``ok``; ``broken`` (import or a hook failed); ``incompatible`` (needs another core); ``conflict``
            (name taken twice); ``disabled`` (left out by ``DLLM_PLUGINS``).
        error: one line, None while `state` is ok or disabled.
        traceback: full text where an exception was caught.
        notes: one line each: what works, but not as it should.
        specs: what it offers; of a broken plugin, what its working hooks offer.
    """

    name: str
    distribution: str
    version: str
    target: str
    requires_core: str | None = None
    state: State = "ok"
    error: str | None = None
    traceback: str | None = None
    notes: tuple[str, ...] = ()
    specs: tuple[Spec, ...] = ()

    @property
    def title(self) -> str:
        """``'acme' (dllm-acme 0.2.0)``; of a conflict the error itself names the distributions."""
        if self.state == "conflict":
            return repr(self.name)
        return f"{self.name!r} ({self.distribution} {self.version})"

    @property
    def location(self) -> str | None:
        """The folder of the plugin's package, found without importing it; None where there is none."""
        folders = [_package_folder(target.partition(".")[0].partition(":")[0]) for target in self.target.split(", ")]
        return ", ".join(filter(None, folders)) or None

    def of(self, spec_type: type[SpecT]) -> tuple[SpecT, ...]:
        """Its components of one kind, in the order in which it lists them."""
        return tuple(spec for spec in self.specs if isinstance(spec, spec_type))

    def warnings(self) -> list[str]:
        """The lines that a user sees on stderr."""
        extent = "partly loaded" if self.specs else "not loaded"
        problems = [f"{extent}: {self.error}"] if self.error else []
        return [f"plugin {self.title} {text}   [dllm plugins show {self.name}]" for text in (*problems, *self.notes)]


class PluginHost:
    """The plugins of this process and what they offer."""

    def __init__(self) -> None:
        self.records: list[PluginRecord] = []
        self.notes: list[str] = []
        self._manager = pluggy.PluginManager("dllm")
        self._manager.add_hookspecs(hookspecs)

    def specs(self, spec_type: type[SpecT]) -> Iterator[tuple[str, SpecT]]:
        """Pairs (plugin name, component), in the order of plugin names, the core first."""
        for record in self.records:
            for spec in record.of(spec_type):
                yield record.name, spec

    def warnings(self) -> list[str]:
        """One line for each thing that is not as it should be."""
        return [*self.notes, *(line for record in self.records for line in record.warnings())]

    def add(self, entry_point: EntryPoint, record: PluginRecord) -> None:
        """Load one plugin, ask its hooks, and keep the outcome in `records`, whatever it is."""
        heavy_before, started = _heavy_modules(), time.perf_counter()
        _, error = attempt(lambda: self._register(entry_point))
        if error is not None:
            if self._manager.has_plugin(entry_point.name):  # pluggy 1.5 and 1.6 leave half a plugin behind
                self._manager.unregister(name=entry_point.name)
            self.records.append(_failed(record, error))
            return
        record = self._ask_hooks(record)
        notes = _import_notes(_heavy_modules() - heavy_before, time.perf_counter() - started)
        self.records.append(replace(record, notes=notes))

    def _register(self, entry_point: EntryPoint) -> None:
        plugin = entry_point.load()
        self._manager.register(plugin, entry_point.name)
        callers = self._manager.get_hookcallers(plugin) or []
        for caller in callers:
            _check_implementations(caller)
        marked = {caller.name for caller in callers}
        unmarked = [name for name in HOOKS if hasattr(plugin, name) and name not in marked]
        if unmarked:
            raise PluginError(f"{', '.join(unmarked)} is not marked with @hookimpl")
        if not callers:
            raise PluginError("nothing in it is marked with @hookimpl")

    def _ask_hooks(self, record: PluginRecord) -> PluginRecord:
        """The record with what the plugin's hooks offer; a failing hook costs its own components only."""
        for hook, allowed in HOOKS.items():
            for implementation in getattr(self._manager.hook, hook).get_hookimpls():
                if implementation.plugin_name != record.name:
                    continue
                specs, error = attempt(functools.partial(_collect, implementation.function, allowed))
                if error is not None:
                    record = _failed(record, error, where=f"{hook}: ")
                record = replace(record, specs=(*record.specs, *(specs or ())))
        return record


def attempt(work: Callable[[], T]) -> tuple[T | None, BaseException | None]:
    """Run other people's code: (result, None) or (None, error), SystemExit included.

    What it prints goes to stderr, since stdout may carry ``--json``. An interrupt from the keyboard passes through.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return work(), None
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return None, error


def import_string(target: str) -> object:
    """The object that ``"package.module:attribute"`` names (``attribute`` may be dotted).

    Raises:
        ComponentLoadError: it cannot be imported, for whatever reason; ``__cause__`` has it.
    """
    _, error = result = attempt(lambda: _import_attribute(target))
    if error is not None:
        raise ComponentLoadError(f"cannot import {target!r}: {one_line(error)}") from error
    return result[0]


def _import_attribute(target: str) -> object:
    module_name, _, attribute = target.partition(":")
    if not attribute:
        raise PluginError("an import string has the form 'package.module:attribute'")
    return functools.reduce(getattr, attribute.split("."), importlib.import_module(module_name))


def one_line(error: BaseException) -> str:
    """What went wrong, without line breaks; the type is named where the message alone would not speak."""
    text, _ = attempt(lambda: " ".join(str(error).split()))  # whose __str__ is other people's code too
    text = text or ""
    if isinstance(error, SystemExit):
        return f"it called sys.exit({text})"
    if len(text) > LONGEST_LINE:
        text = text[:LONGEST_LINE] + " ..."
    if isinstance(error, (ImportError, PluginError, pluggy.PluginValidationError)) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _failed(record: PluginRecord, error: BaseException, where: str = "") -> PluginRecord:
    """The record of a broken plugin; several failing hooks are joined."""
    errors = [text for text in (record.error, where + one_line(error)) if text]
    full = "".join(traceback.format_exception(error))
    tracebacks = [text for text in (record.traceback, full) if text]
    return replace(record, state="broken", error="; ".join(errors), traceback="\n".join(tracebacks))


def _check_implementations(caller: pluggy.HookCaller) -> None:
    """What pluggy's ``check_pending`` checks, hook by hook, with a suggestion; and that nobody wraps other plugins."""
    if not caller.has_spec():
        if not all(implementation.optionalhook for implementation in caller.get_hookimpls()):
            known = ", ".join(HOOKS)
            raise PluginError(f"unknown hook {caller.name!r}.{did_you_mean(caller.name, HOOKS)} The hooks are {known}")
    elif any(impl.wrapper or impl.hookwrapper for impl in caller.get_hookimpls()):
        raise PluginError(f"{caller.name} is a hook wrapper; a plugin can only add components of its own")


def _collect(function: Callable[[], Iterable[Spec]], allowed: tuple[type[Spec], ...]) -> tuple[Spec, ...]:
    """Run one hook to its end and check what it yields: all of it counts or nothing."""
    result = function()
    expected = " or ".join(spec_type.__name__ for spec_type in allowed)
    if isinstance(result, Spec) or not isinstance(result, Iterable):
        raise PluginError(f"returned {type(result).__name__}; yield {expected}, or return a list")
    specs: dict[tuple[type, str], Spec] = {}
    for spec in result:
        if not isinstance(spec, allowed):
            raise PluginError(f"yielded {spec!r:.80}, expected {expected}")
        _check_fields(spec)
        if (type(spec), spec.name) in specs:
            raise PluginError(f"two components of type {type(spec).__name__} are named {spec.name!r}")
        specs[type(spec), spec.name] = spec
    return tuple(specs.values())


def _check_fields(spec: Spec) -> None:
    """That listing and finding this component cannot fail later on a field of the wrong type."""
    what = f"{type(spec).__name__} {spec.name!r}"
    _check_text(what, spec, ("name", "summary", "target", "source"))
    if not spec.name or "/" in spec.name or spec.name != "".join(spec.name.split()):
        raise PluginError(f"{what}: a name must not be empty, nor hold '/' or spaces")
    if not all(spec.target.partition(":")):
        raise PluginError(f"{what}: target must have the form 'package.module:attribute', got {spec.target!r}")
    if isinstance(spec, SamplerSpec) and not isinstance(spec.defaults, dict):
        raise PluginError(f"{what}: defaults must be a dict of options, got {spec.defaults!r}")
    if isinstance(spec, SamplerSpec):
        _check_entries(f"{what}: families", spec.families, str)
    if isinstance(spec, ModelAdapterSpec):
        _check_entries(f"{what}: model_types", spec.model_types, str)
        _check_entries(f"{what}: bundled", spec.bundled, BundledCheckpoint)
        for checkpoint in spec.bundled:
            _check_text(f"{what}: checkpoint", checkpoint, ("name", "summary", "resource"))
            _check_entries(f"{what}: checkpoint {checkpoint.name}: demo_prompts", checkpoint.demo_prompts, str)
            if checkpoint.exercises is not None:
                _check_text(f"{what}: checkpoint", checkpoint, ("exercises",))


def _check_text(what: str, holder: object, fields: Iterable[str]) -> None:
    for field in fields:
        if not isinstance(getattr(holder, field), str):
            raise PluginError(f"{what}: {field} must be text, got {getattr(holder, field)!r}")


def _check_entries(what: str, value: object, entry_type: type) -> None:
    if not isinstance(value, tuple) or not all(isinstance(entry, entry_type) for entry in value):
        raise PluginError(f"{what} must be a tuple of {entry_type.__name__}, got {value!r}")


def _package_folder(package: str) -> str | None:
    with contextlib.suppress(ImportError, ValueError):
        found = importlib.util.find_spec(package)
        if found is not None:
            return next(iter(found.submodule_search_locations or ()), found.origin)
    return None


def _heavy_modules() -> set[str]:
    return {name for name in HEAVY_MODULES if name in sys.modules}


def _import_notes(heavy: set[str], seconds: float) -> tuple[str, ...]:
    if heavy:
        return (f"imports {', '.join(sorted(heavy))} just to be listed, which slows every command",)
    if seconds > SLOW_SECONDS:
        return (f"takes {seconds:.1f} s just to be listed, which slows every command",)
    return ()


# --- discovery -------------------------------------------------------------------------------------------------------


def load_plugins(
    *,
    entry_points: Iterable[EntryPoint] | None = None,
    only: Iterable[str] | None = None,
    core_version: str = __version__,
) -> PluginHost:
    """Load the core's own components and every plugin that may be loaded. Never raises for a plugin's sake.

    Args:
        entry_points: what to load instead of the installed entry points of the group ``dllm``.
        only: names of the plugins to load, None for all; the core is always there.
        core_version: the version that plugins' requirements are checked against.
    """
    host = PluginHost()
    host.add(CORE_ENTRY_POINT, _core_record(core_version))
    if entry_points is None:
        entry_points, error = attempt(lambda: importlib.metadata.entry_points(group=ENTRY_POINT_GROUP))
        if error is not None:
            host.notes.append(f"no plugin can be found, a package's entry points are unreadable: {one_line(error)}")
    by_name: dict[str, list[EntryPoint]] = {}
    for entry_point in entry_points or ():
        by_name.setdefault(entry_point.name, []).append(entry_point)
    allowed = set(by_name) if only is None else set(only)
    for name, same_name in sorted(by_name.items()):
        _add(host, same_name, enabled=name in allowed, core_version=core_version)
    for name in sorted(allowed - {CORE, *by_name}):
        host.notes.append(f"DLLM_PLUGINS asks for {name!r}, which is not installed.{did_you_mean(name, by_name)}")
    return host


def _core_record(version: str) -> PluginRecord:
    return PluginRecord(name=CORE, distribution="dllm-core", version=version, target=CORE_ENTRY_POINT.value)


def _add(host: PluginHost, same_name: Sequence[EntryPoint], *, enabled: bool, core_version: str) -> None:
    """Load the plugin of one name, or record why it is left out."""
    records = [_describe(entry_point) for entry_point in same_name]
    if not enabled:
        host.records.append(replace(_merge(records), state="disabled"))
    elif len(records) > 1 or records[0].name == CORE:
        host.records.append(_conflict(records))
    else:
        refusal = _refusal(records[0], core_version)
        if refusal is None:
            host.add(same_name[0], records[0])
        else:
            host.records.append(refusal)


def _describe(entry_point: EntryPoint) -> PluginRecord:
    """What the installed package says of itself; unknown where that cannot be read."""
    unknown = PluginRecord(name=entry_point.name, distribution="unknown", version="?", target=entry_point.value)
    distribution = entry_point.dist
    metadata, _ = attempt(lambda: None if distribution is None else distribution.metadata)
    if metadata is None:
        return unknown
    return replace(
        unknown,
        distribution=metadata["Name"] or "unknown",
        version=metadata["Version"] or "?",
        requires_core=requirement_on_core(metadata.get_all("Requires-Dist") or ()),
    )


def _merge(records: Sequence[PluginRecord]) -> PluginRecord:
    """One record for all that share a name."""
    return replace(
        records[0],
        distribution=", ".join(record.distribution for record in records),
        version=", ".join(record.version for record in records),
        target=", ".join(record.target for record in records),
    )


def _conflict(records: Sequence[PluginRecord]) -> PluginRecord:
    """Two packages of one name are both left out: which one wins must not be an accident of installation."""
    owners = " and ".join(f"{record.distribution} {record.version}" for record in records)
    if records[0].name == CORE:
        error = f"{owners} takes the name 'core', which is the framework's own; it must choose another"
    else:
        error = f"{owners} both offer a plugin of this name; uninstall one of them"
    return replace(_merge(records), state="conflict", error=error)


def _refusal(record: PluginRecord, core_version: str) -> PluginRecord | None:
    """The record of a plugin that asks for another core, which is then not even imported; None where it fits."""
    requirement = record.requires_core
    if requirement is None:
        return None
    fits, error = attempt(lambda: requirement_holds(requirement, core_version))
    if error is not None:
        return _failed(record, error, where="its requirement on dllm-core cannot be read: ")
    if fits:
        return None
    return replace(record, state="incompatible", error=f"needs {requirement}, this is dllm-core {core_version}")


# --- the host of this process ----------------------------------------------------------------------------------------

_replacement: PluginHost | None = None


def plugin_host() -> PluginHost:
    """The plugins installed beside this process, loaded on first use; what is wrong is said once, on stderr."""
    if _replacement is not None:
        return _replacement
    _warn_once()
    return installed_host()


@functools.cache
def installed_host() -> PluginHost:
    """The same, without a word on stderr. ``DLLM_PLUGINS=a,b`` loads only those, an empty value none."""
    names = os.environ.get("DLLM_PLUGINS")
    return load_plugins(only=None if names is None else [name.strip() for name in names.split(",") if name.strip()])


@contextlib.contextmanager
def use_plugin_host(host: PluginHost) -> Iterator[PluginHost]:
    """Within the block, every look-up of this process goes to `host`; for tests."""
    global _replacement
    previous, _replacement = _replacement, host
    try:
        yield host
    finally:
        _replacement = previous


def debugging() -> bool:
    """Whether ``DLLM_DEBUG`` asks for tracebacks."""
    return os.environ.get("DLLM_DEBUG", "0") not in ("", "0")


@functools.cache
def _warn_once() -> None:
    host = installed_host()
    for line in host.warnings():
        print(f"warning: {line}", file=sys.stderr)
    for record in host.records:
        if record.traceback and debugging():
            print(record.traceback, file=sys.stderr)
