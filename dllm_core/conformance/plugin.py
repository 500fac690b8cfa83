"""`PluginTests`: what every plugin must hold as a package, whatever its components do."""

from __future__ import annotations

import re
import subprocess
import sys
import unittest
from pathlib import Path

from packaging.requirements import Requirement

from dllm_core import __version__
from dllm_core.conformance.expect import expect
from dllm_core.conformance.plugin_import import ImportChecks
from dllm_core.conformance.plugin_specs import NAME, SpecChecks
from dllm_core.conformance.plugin_suite import readme_of
from dllm_core.errors import ComponentLoadError, DllmError
from dllm_core.models import load
from dllm_core.plugins import use_plugin_host
from dllm_core.registry import resource_path
from dllm_core.samplers.prompts import encode

CODE_OR_PICKLE = (".py", ".so", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
READ_RECIPES = """
import sys
from dllm_core.errors import DllmError
from dllm_core.training.recipes import load_recipe
for file in sys.argv[1:]:
    try:
        load_recipe(file)
    except DllmError as error:
        sys.exit(str(error))
"""


class PluginTests(SpecChecks, ImportChecks):
    """The checks of a plugin as a whole; a subclass names it.

    Example:
        >>> class TestPlugin(PluginTests):
        ...     plugin = "acme"
    """

    def test_entry_point_names_a_module(self) -> None:
        """The entry point's name is the plugin's name, lower case; its value is a module.

        Why: the name stands in front of every component, in ``DLLM_PLUGINS`` and in error messages; an object instead
        of a module hides where the hooks are.

        Mend: ``[project.entry-points.dllm]``, then ``acme = "dllm_acme.plugin"``; reinstall.
        """
        record = self.record()
        expect(NAME.fullmatch(record.name), f"the entry point's name {record.name!r} is not of the form 'lower-case-2'")
        expect(":" not in record.target, f"the entry point names {record.target!r}; name the module, without a colon")

    def test_requirement_on_core_is_bounded(self) -> None:
        """The package requires dllm-core with an upper bound, and this core meets it.

        Why: before 1.0 a minor version may change the contract; without a bound pip installs the pair anyway and the
        user meets the difference as an AttributeError.

        Mend: ``dependencies = ["dllm-core>=0.1,<0.2"]`` for the versions that you tested.
        """
        if self.plugin == "core":
            raise unittest.SkipTest("the core does not require itself")
        stated = self.record().requires_core
        expect(stated, "the package states no requirement on dllm-core; add one, for instance dllm-core>=0.1,<0.2")
        specifier = Requirement(stated).specifier
        bounded = any(part.operator in ("<", "<=", "==", "~=") for part in specifier)
        expect(bounded, f"{stated!r} has no upper bound; add one, for instance dllm-core>=0.1,<0.2")
        holds = specifier.contains(__version__, prereleases=True)
        expect(holds, f"{stated!r} does not hold for this dllm-core {__version__}; test with it, then widen the bound")

    def test_readme_names_every_component(self) -> None:
        """The readme mentions every component and checkpoint by the name that users type.

        Why: the readme is what people find first; a component that it does not name is not found at all.

        Mend: add a line with the name in backquotes. An installed package keeps the readme it was built with.
        """
        distribution = self.distribution()
        text = None if distribution is None else readme_of(distribution)
        if text is None:
            raise unittest.SkipTest("the package's metadata carries no readme")
        names = [thing.name for thing in (*(spec for _, spec in self.components()), *self.checkpoints())]
        missing = [name for name in names if not re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", text)]
        expect(not missing, f"the readme does not mention {', '.join(missing)}; say what each is for")

    def test_bundled_checkpoints_are_plain_data(self) -> None:
        """A bundled checkpoint lies inside its package and holds a config and safetensors, no code and no pickles.

        Why: a pickle runs code when it is read; files outside the package, or links to them, are not in the wheel.

        Mend: save with ``save_pretrained``, put the folder into the package, list it as package data.
        """
        for checkpoint in self._checkpoints_or_skip():
            package, _, relative = checkpoint.resource.partition(":")
            folder = _resolved(checkpoint.resource)
            root = folder.parents[len(Path(relative).parts) - 1].resolve()
            names = {file.name for file in folder.iterdir()}
            whole = "config.json" in names and any(name.endswith(".safetensors") for name in names)
            expect(
                whole, f"{checkpoint.name}: {checkpoint.resource} holds {sorted(names)}; save config and weights there"
            )
            for file in (folder, *folder.rglob("*")):
                inside = file.resolve().is_relative_to(root)
                expect(inside, f"{checkpoint.name}: {file.name} lies outside {package!r}; copy it into the package")
                plain = file.suffix not in CODE_OR_PICKLE
                expect(plain, f"{checkpoint.name}: {file.name} may run code when it is read; keep safetensors and JSON")

    def test_bundled_checkpoints_load(self) -> None:
        """Every bundled checkpoint loads by its name, offline, and takes its demonstration prompts.

        Why: ``dllm run`` with nothing else starts with a bundled checkpoint; it is the first thing that a user sees.

        Mend: ``dllm run --model NAME "a prompt"`` shows the error; see that the folder holds the tokenizer too.
        """
        with use_plugin_host(self.host()):
            for checkpoint in self._checkpoints_or_skip():
                try:
                    denoiser = load(f"{self.plugin}/{checkpoint.name}", device="cpu")
                    rows = encode(denoiser, list(checkpoint.demo_prompts)) if checkpoint.demo_prompts else []
                except DllmError as error:
                    raise AssertionError(f"checkpoint {checkpoint.name} does not load: {error}") from error
                longest, context = max(map(len, rows), default=0), denoiser.context_length
                fits = context is None or longest < context
                expect(fits, f"{checkpoint.name}: a prompt of {longest} tokens does not fit its context of {context}")

    def test_recipes_are_read(self) -> None:
        """Every recipe in the package's folder ``recipes`` is well formed.

        Why: an unknown key in a recipe is an error at the start of a training run, on a machine that was waited for.

        Mend: ``dllm train --recipe NAME --dry-run`` shows the recipe with all defaults.
        """
        files = self._recipes()
        if not files:
            raise unittest.SkipTest("the plugin ships no recipes")
        command = [sys.executable, "-c", READ_RECIPES, *files]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        said = (done.stderr.strip().splitlines() or [""])[-1]
        expect(done.returncode == 0, f"{said}; dllm train --recipe FILE --dry-run shows what a recipe holds")

    def _recipes(self) -> list[str]:
        try:
            folder = resource_path(f"{self.loaded().target.partition('.')[0]}:recipes")
        except ComponentLoadError:
            return []
        return [str(file) for file in sorted(folder.glob("*.y*ml"))]

    def _checkpoints_or_skip(self) -> list:
        checkpoints = self.checkpoints()
        if not checkpoints:
            raise unittest.SkipTest("the plugin ships no checkpoint")
        return checkpoints


def _resolved(resource: str) -> Path:
    try:
        return resource_path(resource)
    except ComponentLoadError as error:
        raise AssertionError(f"{error}; add the folder to [tool.setuptools.package-data]") from error
