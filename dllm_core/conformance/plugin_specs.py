"""Checks of what a plugin registers: names, words, and the objects behind its import strings."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator

import yaml

from dllm_core import registry
from dllm_core.conformance.expect import expect, expect_equal
from dllm_core.conformance.plugin_suite import PluginSuite
from dllm_core.errors import ComponentLoadError, OptionError
from dllm_core.hookspecs import EvalPresetSpec, EvalTaskSpec, ModelAdapterSpec, SamplerSpec, Spec
from dllm_core.models import ModelAdapter
from dllm_core.objectives import Objective
from dllm_core.plugins import KINDS, import_string, use_plugin_host
from dllm_core.samplers import CachePolicy, CommitRule, Sampler
from dllm_core.samplers.parts import build

BASES: dict[str, type] = {
    "objective": Objective,
    "adapter": ModelAdapter,
    "sampler": Sampler,
    "commit rule": CommitRule,
    "cache policy": CachePolicy,
}
NAME = re.compile(r"[a-z][a-z0-9]*([-_.][a-z0-9]+)*")
LONGEST_SUMMARY = 120
PLACEHOLDER = re.compile(r"\W*(todo|tbd|fixme|xxx|none|n/?a|unknown|source|\?)?\W*", re.IGNORECASE)


class SpecChecks(PluginSuite):
    """The components that the plugin lists."""

    def components(self) -> Iterator[tuple[str, Spec]]:
        """Pairs (kind, spec) of everything that the plugin offers."""
        record = self.loaded()
        for kind, spec_type in KINDS.items():
            yield from ((kind, spec) for spec in record.of(spec_type))

    def test_specs_are_those_of_the_contract(self) -> None:
        """Every spec is exactly of a class of `dllm_core.hookspecs`, and there is at least one.

        Why: a subclass brings fields that the host does not know, or loses ``frozen`` and can change after it was
        listed.

        Mend: yield the classes of the contract; what else a component needs belongs into the object behind its target.
        """
        specs = [spec for _, spec in self.components()]
        expect(specs, f"{self.plugin} offers nothing; yield specs from its hooks")
        for spec in specs:
            known = type(spec) in KINDS.values()
            expect(known, f"{spec.name}: {type(spec).__name__} is a class of its own; yield one of dllm_core.hookspecs")

    def test_names_are_well_formed(self) -> None:
        """Names are lower case, of letters, digits and single dashes; checkpoints of one plugin have different names.

        Why: names are typed on command lines and stand in recipes and file names, where case and odd characters are
        traps.

        Mend: rename the component; old names may live on as a second spec with the same target.
        """
        checkpoints = [entry.name for entry in self.checkpoints()]
        for name in (self.plugin, *(spec.name for _, spec in self.components()), *checkpoints):
            expect(NAME.fullmatch(name), f"the name {name!r} is not of the form 'lower-case-2'; rename it")
        twice = sorted({name for name in checkpoints if checkpoints.count(name) > 1})
        expect(not twice, f"several checkpoints are named {', '.join(twice)}; give each a name of its own")

    def test_summaries_are_one_line(self) -> None:
        """Every component and checkpoint has a summary of one line, at most 120 characters long.

        Why: it is all that ``dllm plugins show`` says of the component.

        Mend: say what it does, not what it is called.
        """
        for thing in (*(spec for _, spec in self.components()), *self.checkpoints()):
            line = thing.summary
            good = line == line.strip() and len(line.splitlines()) == 1 and len(line) <= LONGEST_SUMMARY
            expect(good, f"{thing.name}: summary {line!r} must be one line of 1 to {LONGEST_SUMMARY} characters")

    def test_sources_are_stated(self) -> None:
        """Every component says in one line which paper or code it follows, or ``"original"``.

        Why: the same name means different formulas in different papers; only the source tells which one this is.

        Mend: give the arXiv number and equation, or the upstream file at a commit.
        """
        for _, spec in self.components():
            stated = not PLACEHOLDER.fullmatch(spec.source) and len(spec.source.splitlines()) == 1
            expect(stated, f"{spec.name}: source {spec.source!r} names none; cite paper and equation, or 'original'")

    def test_targets_resolve(self) -> None:
        """Every target imports, every task and preset file is there.

        Why: targets are imported on first use only, so a misspelt one is met by a user, not by the author.

        Mend: correct the import string; add data files to ``[tool.setuptools.package-data]``.
        """
        for kind, spec in self.components():
            try:
                _target(kind, spec)
            except ComponentLoadError as error:
                raise AssertionError(f"{kind} {spec.name}: {error}; correct its target") from error

    def test_targets_are_of_the_right_kind(self) -> None:
        """A target is a subclass of the contract's class for its kind; a preset is a YAML mapping.

        Why: an instance, a function or another kind's class fails far from here, in the middle of a run.

        Mend: derive from Objective, ModelAdapter, Sampler, CommitRule or CachePolicy, and name the class itself.
        """
        for kind, spec in self.components():
            if not _resolves(kind, spec):
                continue  # told of by the check before
            if kind in BASES:
                found, base = import_string(spec.target), BASES[kind]
                is_one = isinstance(found, type) and issubclass(found, base)
                expect(is_one, f"{kind} {spec.name}: {spec.target} is {found!r}, no subclass of {base.__name__}")
            elif isinstance(spec, EvalPresetSpec):
                _expect_mapping(spec)
            elif isinstance(spec, EvalTaskSpec):
                path = registry.resource_path(spec.target)
                files = [path] if path.is_file() else [*path.rglob("*.yaml"), *path.rglob("*.yml")]
                expect(files, f"eval task {spec.name}: {spec.target} holds no YAML file; put the task's config there")

    def test_sampler_defaults_are_options(self) -> None:
        """The defaults of a sampler's spec are options of its target, with values that it accepts.

        Why: a preset with a misspelt option fails at its first use, or worse, is the sampler without the preset.

        Mend: correct ``SamplerSpec.defaults``; its names are those of the target's ``options_class``, of its commit
        rule and of its cache policy.
        """
        with use_plugin_host(self.host()):
            for spec in filter(_is_class, self.loaded().of(SamplerSpec)):
                what = f"sampler {spec.name}: its defaults {spec.defaults}"
                try:
                    build(import_string(spec.target).options_class, spec.defaults)
                except OptionError as error:
                    raise AssertionError(f"{what} are refused: {error}") from error

    def test_model_types_agree(self) -> None:
        """An adapter's spec and its class serve the same ``model_type`` values, at least one.

        Why: the spec decides which checkpoints come to the adapter, the class which of them it takes; a model type in
        one only is refused, or never found.

        Mend: list the same values in both.
        """
        for spec in filter(_is_class, self.loaded().of(ModelAdapterSpec)):
            own = import_string(spec.target).model_types
            expect(spec.model_types, f"adapter {spec.name} serves no model_type; list those of its config.json files")
            expect_equal(sorted(spec.model_types), sorted(own), f"adapter {spec.name}: model_types of spec and class")

    def test_converters_resolve(self) -> None:
        """A converter that an adapter's spec names imports and can be called as the core calls it.

        Why: it is imported on first use only, after a checkpoint of many gigabytes was downloaded.

        Mend: correct ``ModelAdapterSpec.converter``; give its function the arguments of
        ``dllm_core.models.converting.Converter``.
        """
        for spec in self.loaded().of(ModelAdapterSpec):
            if spec.converter is None:
                continue
            try:
                converter = import_string(spec.converter)
                signature = inspect.signature(converter)
                signature.bind("source", dtype="auto", logits_are_shifted=False, revision=None)
            except (ComponentLoadError, TypeError) as error:
                raise AssertionError(f"adapter {spec.name}: converter {spec.converter}: {error}") from error

    def checkpoints(self) -> list:
        """The bundled checkpoints of all its adapters."""
        return [entry for spec in self.loaded().of(ModelAdapterSpec) for entry in spec.bundled]


def _target(kind: str, spec: Spec) -> object:
    return import_string(spec.target) if kind in BASES else registry.resource_path(spec.target)


def _resolves(kind: str, spec: Spec) -> bool:
    try:
        _target(kind, spec)
    except ComponentLoadError:
        return False
    return True


def _is_class(spec: SamplerSpec | ModelAdapterSpec) -> bool:
    """Whether there is a class to look into; what else the target may be is told of by other checks."""
    return _resolves("sampler", spec) and isinstance(import_string(spec.target), type)


def _expect_mapping(spec: EvalPresetSpec) -> None:
    try:
        content = yaml.safe_load(registry.resource_path(spec.target).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise AssertionError(f"eval preset {spec.name}: {spec.target} is no YAML: {error}") from error
    expect(isinstance(content, dict), f"eval preset {spec.name}: {spec.target} holds {content!r:.80}, no mapping")
