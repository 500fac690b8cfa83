"""An index of the folders of lm-eval that some names need, in place of one of all its tasks.

lm-eval reads each of its 14,000 files as YAML before it looks for a name, which takes 20 seconds; to search them for
the name as text takes one. What could make the smaller index differ from the whole one for these names gives that up.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lm_eval.tasks
from lm_eval.tasks import TaskManager

ROOT = Path(lm_eval.tasks.__file__).parent
INCLUDE = re.compile(rb"^include:[ \t]*((?:\r?\n[ \t]*-[ \t]*\S+)+|\S+)", re.MULTILINE)


def narrowed(names: Sequence[str], paths: Sequence[str]) -> TaskManager | None:
    """An index of `paths` and of those folders of lm-eval that these names and all below them are in.

    Returns:
        None where only the whole index is sure: a name that no file has, a tag that several folders share.
    """
    library = Library(ROOT)
    folders: set[Path] = set()
    wanted = set(names)
    while more := library.folders(wanted) - folders:
        if ROOT in more:
            return None
        folders |= more
        # Of two files with one name lm-eval takes the first; of two folders it takes the last.
        manager = TaskManager(include_path=[*sorted(folders, reverse=True), *paths], include_defaults=False)
        below = dict(_below(manager.task_index, names))
        if any(len(library.folders([name])) > 1 for name, kind in below.items() if kind == "TAG"):
            return None
        wanted = {name for name, kind in below.items() if kind is None}
        if not wanted:
            return manager
    return None


class Library:
    """The files of a folder of tasks as text, and which of them include which."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.texts = {file: file.read_bytes() for file in root.rglob("*.yaml")}
        self.includers: dict[Path, list[Path]] = defaultdict(list)
        for file, text in self.texts.items():
            for found in INCLUDE.finditer(text):
                for name in found[1].decode().split():
                    self.includers[(file.parent / name.strip("'\"")).resolve()].append(file)

    def folders(self, names: Iterable[str]) -> set[Path]:
        """The folders whose files have one of these names, or include one that has; the root for a file of its own."""
        files = {file for name in names for file in self._mentions(name)}
        parts = (file.relative_to(self.root).parts for file in files)
        return {self.root / part[0] if len(part) > 1 else self.root for part in parts}

    def _mentions(self, name: str) -> set[Path]:
        pattern = re.compile(rb"(?<![\w./-])" + re.escape(name.encode()) + rb"(?![\w/-])")
        left = [file for file, text in self.texts.items() if pattern.search(text)]
        found = set(left)
        while left:
            new = [file for file in self.includers[left.pop().resolve()] if file not in found]
            found.update(new)
            left += new
        return found


def _below(index: Mapping[str, Any], names: Iterable[Any]) -> Iterator[tuple[str, str | None]]:
    """Names and all below them, with what kind they are; None for what the index lacks."""
    for name in names:
        if isinstance(name, dict):
            inside = name.get("task")
            yield from _below(index, inside if isinstance(inside, list) else [inside])
            continue
        entry = index.get(name)
        yield name, entry and entry.kind.name
        if entry and entry.kind.name == "TAG":
            yield from _below(index, entry.tags)
        elif entry and entry.kind.name == "GROUP":
            inside = (entry.cfg or {}).get("task") or []
            yield from _below(index, inside if isinstance(inside, list) else [inside])
