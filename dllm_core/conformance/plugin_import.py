"""Checks of what a plugin does when it is listed: every command of everybody pays for it."""

from __future__ import annotations

from dllm_core.conformance.expect import expect
from dllm_core.conformance.fresh import fresh_import
from dllm_core.conformance.plugin_suite import PluginSuite
from dllm_core.plugins import HEAVY_MODULES, SLOW_SECONDS


class ImportChecks(PluginSuite):
    """The plugin's import and its hooks."""

    def test_plugin_loads(self) -> None:
        """The host imports the plugin, its hooks are well formed and run, its requirement on the core holds.

        Why: whatever goes wrong here costs the user all components of the plugin; `llm` and `datasette` let one such
        plugin stop everything (simonw/llm issue 1280).

        Mend: ``dllm plugins show NAME`` prints the whole error.
        """
        record = self.record()
        reason = record.error or "DLLM_PLUGINS leaves it out"
        expect(record.state == "ok", f"{record.title} is {record.state}: {reason}   [dllm plugins show {record.name}]")

    def test_import_is_light(self) -> None:
        """Importing the plugin's module and calling its hooks imports no torch, transformers, numpy or datasets.

        Why: every command imports every plugin; one that imports torch makes ``--help`` wait for it (simonw/llm issue
        732: from 1.3 to 10.7 seconds).

        Mend: the module that the entry point names holds hooks and specs only; keep the package's ``__init__`` as
        light, for instance with a module-level ``__getattr__``.
        """
        heavy = self.fresh().heavy
        light = f"{self.record().target} imports {', '.join(heavy)}; of {', '.join(HEAVY_MODULES)} it may import none"
        expect(not heavy, f"{light}: name components by import string, import inside them")

    def test_import_is_quick(self) -> None:
        """Importing the plugin takes at most a second.

        Why: it is added to the start of every command, also of those that have nothing to do with the plugin.

        Mend: ``python -X importtime -c 'import PACKAGE.plugin'`` shows what takes the time.
        """
        seconds = self.fresh().seconds
        if seconds > SLOW_SECONDS:  # perhaps the machine was busy
            fresh_import.cache_clear()
            seconds = min(seconds, self.fresh().seconds)
        self.notes = (f"imports in {1000 * seconds:.1f} ms",)
        said = f"{self.record().target} takes {seconds:.2f} s to import, allowed is {SLOW_SECONDS:.0f} s"
        expect(seconds <= SLOW_SECONDS, f"{said}; do the work where it is used")

    def test_import_is_silent(self) -> None:
        """Importing the plugin writes nothing to stdout or stderr.

        Why: the greeting would stand in front of every command's output, in pipes and logs too.

        Mend: take the print, the warning or the logging call out of the module level.
        """
        printed = self.fresh().printed.strip()
        expect(not printed, f"{self.record().target} writes {printed[:200]!r} when it is imported; print nothing there")

    def test_import_leaves_the_process_alone(self) -> None:
        """Importing the plugin changes no environment variable, no logging, no ``sys.path``, no working folder.

        Why: a variable that one plugin sets, TOKENIZERS_PARALLELISM or CUDA_VISIBLE_DEVICES, changes what all others
        do, and nobody looks for it in a plugin that is merely installed.

        Mend: set what your component needs where it runs, and undo it there.
        """
        changed = self.fresh().changed
        expect(not changed, f"importing {self.record().target} changes {', '.join(changed)}; leave them alone")

    def test_hooks_are_pure(self) -> None:
        """A hook yields the same specs whenever it is called.

        Why: the host asks once, tests and tools ask again; a generator that is used up, or a name that counts up,
        makes components come and go.

        Mend: build the specs inside the hook from constants.
        """
        expect(self.fresh().pure, f"hooks of {self.record().target} yield other specs the second time; keep no state")
