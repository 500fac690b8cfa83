"""Recipes: YAML files that say how a model is trained. Plugins ship them in a folder ``recipes`` of their package.

Sections, each checked before anything heavy is loaded; an unknown key is an error. For example::

    summary: one line for listings
    model: {adapter: acme, config: {d_model: 128}}                # or {checkpoint: NAME}
    tokenizer: {builder: "dllm_acme.tokenizer:build_tokenizer"}   # or {path: FOLDER}
    data: {generator: "dllm_acme.data:examples", eval_count: 256}
    objective: {name: mdlm, weighting: uniform}
    lora: {r: 16, alpha: 32}                                      # leave out to train all weights
    training: {max_steps: 1000, learning_rate: 0.003}             # transformers.TrainingArguments, and ours
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import yaml

from dllm_core.config import at_least, from_mapping, parse_assignments
from dllm_core.data.rendering import DataOptions
from dllm_core.errors import (
    AmbiguousComponentError,
    ComponentLoadError,
    OptionError,
    UnknownComponentError,
    did_you_mean,
)
from dllm_core.models.lora import LoraSection
from dllm_core.plugins import plugin_host
from dllm_core.registry import load, resource_path

SectionT = TypeVar("SectionT")
SUFFIX = ".yaml"


@dataclass(frozen=True, kw_only=True)
class ModelSection:
    """Where the weights come from.

    Args:
        checkpoint: what `dllm.load` takes; or
        adapter, config: the family and the fields of its configuration, for fresh random weights.
        dtype: type of the weights while training: ``float32``, ``bfloat16`` (``bf16: true`` of the training section,
            which computes in bfloat16 and keeps float32 weights, is usually better).
        attn_implementation: as in `dllm.load`.
        load_in_4bit: quantise a checkpoint as it loads, for training with section lora (QLoRA).
    """

    checkpoint: str | None = None
    adapter: str | None = None
    config: dict[str, object] = field(default_factory=dict)
    dtype: str = "float32"
    attn_implementation: str | None = None
    load_in_4bit: bool = False

    def __post_init__(self) -> None:
        if (self.checkpoint is None) == (self.adapter is None):
            raise OptionError("section model needs either checkpoint, or adapter with config for fresh weights")
        if self.checkpoint is not None and self.config:
            raise OptionError("section model: config is for fresh weights, a checkpoint brings its own")
        if self.checkpoint is None and self.load_in_4bit:
            raise OptionError("section model: load_in_4bit is for a checkpoint; fresh weights are trained whole")
        _check_mapping("model.config", self.config)


@dataclass(frozen=True, kw_only=True)
class TokenizerSection:
    """Which tokenizer is used, and saved with the model; neither: the checkpoint's own.

    Args:
        builder: import string of a function without arguments that returns one.
        path: folder or hub id.
    """

    builder: str | None = None
    path: str | None = None

    def __post_init__(self) -> None:
        if self.builder is not None and self.path is not None:
            raise OptionError("section tokenizer takes builder or path, not both")


@dataclass(frozen=True, kw_only=True)
class DataSection:
    """What is learned, as examples with ``input_ids`` and perhaps ``labels`` (-100 = context).

    Args:
        generator: import string of a function, called with the keywords ``split``, ``seed``, ``count`` and those in
            ``options``; it yields the examples in the order in which they are used.
        options: further keywords for the generator.
        train_split, eval_split: what the generator calls its splits.
        train_count: examples generated; None: as many as ``training.max_steps`` uses.
        eval_count: examples generated, or read from the start of ``eval_file``, for evaluation; 0: none.
        train_file, eval_file: JSON-lines files instead of a generator, each line with ``input_ids`` (and perhaps
            ``labels``) or with ``text``.
        dataset: data sets instead (`dllm_core.data.grammar`), or a folder from ``dllm data prepare``; at most
            ``eval_count`` of their rows for evaluation are used.
        format, max_length, truncation, mask_prompt_loss, supervised, insert_eos, streaming, num_proc: see
            `dllm_core.data.DataOptions`; ``max_length`` None: 1024, or what the model reads where that is less.
        packing: put several examples into rows of ``max_length``, see `PackingCollator`.
        collators: wrappers in the order in which they act, see `dllm_core.training.wrapping`: a name or an import
            string, or a mapping with ``name`` and options.
        seed: of the generator, or of the rows held out of ``dataset``.
        learn_padding, pad_to_multiple_of: see `DiffusionCollator`.
    """

    generator: str | None = None
    options: dict[str, object] = field(default_factory=dict)
    train_split: str = "train"
    eval_split: str = "held_out"
    train_count: int | None = None
    eval_count: int = 0
    train_file: str | None = None
    eval_file: str | None = None
    dataset: str | None = None
    format: str = "auto"
    max_length: int | None = None
    truncation: str = "right"
    mask_prompt_loss: bool = True
    supervised: str = "all"
    insert_eos: bool | None = None
    streaming: bool = False
    num_proc: int = 1
    packing: bool = False
    collators: list = field(default_factory=list)
    seed: int = 0
    learn_padding: bool = False
    pad_to_multiple_of: int = 1

    def __post_init__(self) -> None:
        sources = {"generator": self.generator, "train_file": self.train_file, "dataset": self.dataset}
        if sum(source is not None for source in sources.values()) != 1:
            raise OptionError("section data needs either generator, train_file or dataset")
        if self.dataset is not None:
            self.data_options(1024)
        elif self.streaming:
            raise OptionError("section data: streaming belongs to dataset")
        if self.packing and self.max_length is None and self.dataset is None:
            raise OptionError("section data: packing needs max_length, the length of a row")
        if self.packing and (self.learn_padding or self.pad_to_multiple_of > 1):
            raise OptionError("section data: packing pads its own way; leave out learn_padding and pad_to_multiple_of")
        if self.generator is None and (self.options or self.train_count is not None):
            raise OptionError("section data: options and train_count belong to a generator")
        if self.generator is not None and self.eval_file is not None:
            raise OptionError("section data: a generator makes the examples for evaluation too; leave out eval_file")
        if self.dataset is not None and self.eval_file is not None:
            raise OptionError("section data: a dataset brings its own rows for evaluation; leave out eval_file")
        if self.train_file is not None and bool(self.eval_count) != bool(self.eval_file):
            raise OptionError("section data: eval_file and eval_count (lines to read) go together")
        _check_mapping("data.options", self.options)
        at_least("data.eval_count", self.eval_count, 0)
        at_least("data.pad_to_multiple_of", self.pad_to_multiple_of, 1)
        if self.train_count is not None:
            at_least("data.train_count", self.train_count, 1)

    def data_options(self, longest: int) -> DataOptions:
        """How the rows of ``dataset`` become examples; `longest` where the recipe names no length.

        Raises:
            OptionError: a value that is not allowed.
        """
        shared = {f.name: getattr(self, f.name) for f in dataclasses.fields(DataOptions) if hasattr(self, f.name)}
        return DataOptions(**{**shared, "max_length": longest if self.max_length is None else self.max_length})


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole recipe, checked as far as it can be without importing torch.

    Args:
        summary: one line for listings.
        objective: ``name`` and the options of that objective.
        lora: train an adapter beside the frozen weights; None: train the weights.
        training: fields of `DiffusionArguments`, without ``output_dir``, which the command gives.
    """

    summary: str = ""
    model: ModelSection
    tokenizer: TokenizerSection = field(default_factory=TokenizerSection)
    data: DataSection
    objective: dict[str, object] = field(default_factory=lambda: {"name": "mdlm"})
    lora: LoraSection | None = None
    training: dict[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_mapping("objective", self.objective)
        _check_mapping("training", self.training)
        if "name" not in self.objective:
            raise OptionError("section objective needs a name, for example name: mdlm")
        if self.lora is None and self.model.load_in_4bit:
            raise OptionError(
                "section model: 4-bit weights cannot be trained; add section lora, or leave out load_in_4bit"
            )
        if self.lora is not None and self.model.checkpoint is None:
            raise OptionError("section lora needs model.checkpoint: an adapter to fresh weights belongs to no model")
        if "output_dir" in self.training:
            raise OptionError("section training: leave out output_dir; the command names the folder (--output)")

    def as_yaml(self) -> str:
        """The recipe with everything that was left to defaults in sections model, tokenizer and data written out."""
        return yaml.safe_dump(self.as_dict(), sort_keys=False, allow_unicode=True)

    def as_dict(self) -> dict[str, object]:
        """The same as nested mappings."""
        return dataclasses.asdict(self)


_SECTIONS = {"model": ModelSection, "tokenizer": TokenizerSection, "data": DataSection, "lora": LoraSection}


def find_recipes() -> dict[str, Path]:
    """Every recipe that an installed plugin ships: full id ``plugin/name`` -> file."""
    found: dict[str, Path] = {}
    for record in plugin_host().records:
        if record.state != "ok":
            continue
        try:
            folder = resource_path(f"{record.target.partition('.')[0]}:recipes")
        except ComponentLoadError:
            continue  # the plugin ships none
        found |= {f"{record.name}/{file.stem}": file for file in sorted(folder.glob(f"*{SUFFIX}"))}
    return found


def load_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe by name (``name`` or ``plugin/name``) or from a ``.yaml`` file, with some values replaced.

    Args:
        overrides: ``section.key=value``, for example ``training.max_steps=100``; values are read as YAML. ``key=value``
            serves where only one section has that key.

    Raises:
        UnknownComponentError, AmbiguousComponentError: no recipe of that name, or several.
        OptionError: no such file, not YAML, an unknown section or key, or a value that is not allowed.
    """
    file = recipe_file(str(name_or_path))
    mapping = _read(file)
    for override in overrides:
        _replace(mapping, override)
    return parse_recipe(mapping, what=f"recipe {file.stem!r}")


def parse_recipe(mapping: Mapping[str, object], *, what: str = "recipe") -> Recipe:
    """A recipe from nested mappings, as YAML gives them.

    Raises:
        OptionError: an unknown section or key, or a value that is not allowed.
    """
    values = dict(mapping)
    for name, section in _SECTIONS.items():
        if name in values and not (name == "lora" and values[name] is None):
            _check_mapping(name, values[name])
            values[name] = from_mapping(section, values[name], what=f"{what}, section {name}")
    return from_mapping(Recipe, values, what=what)


def recipe_file(name: str) -> Path:
    """The file of a recipe: one that is installed under this name, or the ``.yaml`` file itself.

    Raises:
        UnknownComponentError, AmbiguousComponentError: no recipe of that name, or several.
        OptionError: no such file.
    """
    if name.endswith((SUFFIX, ".yml")):
        file = Path(name)
        if not file.is_file():
            raise OptionError(f"no recipe file {name!r}; give an existing file, or the name of an installed recipe")
        return file
    recipes = find_recipes()
    matches = [full_id for full_id in recipes if name in (full_id, full_id.partition("/")[2])]
    if len(matches) > 1:
        raise AmbiguousComponentError(f"recipe {name!r} is shipped by several plugins; write {' or '.join(matches)}")
    if not matches:
        near = did_you_mean(name, [*(full_id.partition("/")[2] for full_id in recipes), *recipes])
        advice = "'dllm recipes' lists those installed; or give a .yaml file"
        raise UnknownComponentError(f"unknown recipe {name!r}.{near} {advice}")
    return recipes[matches[0]]


def _read(file: Path) -> dict[str, object]:
    try:
        mapping = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise OptionError(f"recipe {str(file)!r} is not valid YAML: {' '.join(str(error).split())}") from error
    _check_mapping(f"recipe {str(file)!r}", mapping)
    return mapping


def _replace(mapping: dict[str, object], override: str) -> None:
    path, equals, text = override.partition("=")
    *sections, key = path.strip().replace("-", "_").split(".")
    if not equals:
        raise OptionError(f"override {override!r} must have the form section.key=value, e.g. training.max_steps=100")
    if not sections and key not in _fields(Recipe):  # a whole section may be replaced too: lora=null
        sections = [_section_with(key, mapping)]
    for section in sections:
        mapping = mapping.setdefault(section, {})
        _check_mapping(section, mapping)
    mapping.update(parse_assignments([f"{key}={text}"]))


def _section_with(key: str, mapping: Mapping[str, object]) -> str:
    """The one section that has this key.

    Raises:
        OptionError: none has, or several.
    """
    homes = [section for section, keys in _keys(mapping).items() if key in keys]
    if len(homes) == 1:
        return homes[0]
    if homes:
        raise OptionError(f"{key} is in several sections; write {' or '.join(f'{home}.{key}=...' for home in homes)}")
    known = {name: section for section, keys in _keys(mapping).items() for name in keys}
    near = did_you_mean(key, known)
    raise OptionError(
        f"no section of a recipe has a key {key!r}.{near} Write section.key=value, e.g. training.max_steps=100"
    )


def _keys(mapping: Mapping[str, object]) -> dict[str, set[str]]:
    """The keys that each section may have. Imports what trains: only a key without a section needs to know."""
    from dllm_core.training.arguments import DiffusionArguments

    keys = {name: _fields(section) for name, section in _SECTIONS.items()}
    keys["training"] = _fields(DiffusionArguments) - {"output_dir"}
    chosen = mapping.get("objective", {"name": "mdlm"})
    keys["objective"] = {"name", *_fields(load("objective", str(chosen.get("name"))))}
    return keys


def _fields(cls: type) -> set[str]:
    return {field.name for field in dataclasses.fields(cls) if field.init} if dataclasses.is_dataclass(cls) else set()


def _check_mapping(name: str, value: object) -> None:
    if not isinstance(value, dict):
        raise OptionError(f"{name} must be a mapping of names to values, got {value!r}")
