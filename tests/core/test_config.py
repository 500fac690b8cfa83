"""Options: unknown ones, wrong types and ranges are refused in a line that says what would do."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dllm_core.config import at_least, coerce, from_mapping, one_of, parse_assignments, within
from dllm_core.errors import OptionError, did_you_mean

if TYPE_CHECKING:
    from nowhere import Unheard


@dataclass(frozen=True, kw_only=True)
class Options:
    steps: int = 64
    temperature: float = 0.0
    block_length: int | None = None
    confidence: str = "probability"
    quota: Literal["schedule", "even"] = "schedule"
    stop_at_eos: bool = True
    keep: tuple[int, ...] = ()
    weights: list[float] = field(default_factory=list)
    seed: int | Sequence[int] = 0
    window: int | float | None = None
    anything: object = None
    hidden: int = field(init=False, default=3)

    def __post_init__(self) -> None:
        at_least("steps", self.steps, 1, "one step fills the whole block")


@dataclass(frozen=True)
class NeedsName:
    name: str
    size: int = 1


def make(*assignments: str) -> Options:
    return from_mapping(Options, parse_assignments(assignments), what="sampler 'mdlm'")


def refusal(*assignments: str) -> str:
    with pytest.raises(OptionError) as caught:
        make(*assignments)
    assert caught.value.exit_code == 2
    return str(caught.value)


@pytest.mark.parametrize(
    ("assignment", "value"),
    [
        ("steps=8", 8),
        ("steps='8'", 8),
        ("temperature=1", 1.0),
        ("temperature=1e-3", 1e-3),  # YAML 1.1 reads this as text
        ("temperature=.inf", math.inf),
        ("block_length=null", None),
        ("block-length=32", 32),
        ("confidence=margin", "margin"),
        ("confidence='5'", "5"),
        ("quota=even", "even"),
        ("stop_at_eos=false", False),
        ("stop_at_eos=off", False),
        ("stop_at_eos='yes'", True),
        ("keep=[1, 2]", (1, 2)),
        ("keep=[]", ()),
        ("weights=[1, 2.5, 1e-3]", [1.0, 2.5, 1e-3]),
        ("seed=7", 7),
        ("seed=[1, 2]", (1, 2)),
        ("window=0.5", 0.5),
        ("window=3", 3),
        ("anything={a: 1}", {"a": 1}),
        ("confidence=", ""),
    ],
)
def test_an_assignment_becomes_the_fields_type(assignment: str, value: object) -> None:
    name = assignment.partition("=")[0].replace("-", "_")
    assert repr(getattr(make(assignment), name)) == repr(value)  # repr: 1 and 1.0 are not the same


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("steps=1.5", "steps must be a whole number, got 1.5"),
        ("steps=many", "steps must be a whole number, got 'many'"),
        ("steps=true", "steps must be a whole number, got True"),
        ("steps=null", "steps must be a whole number, got None"),
        ("temperature=warm", "temperature must be a number, got 'warm'"),
        ("temperature=yes", "temperature must be a number, got True"),
        ("block_length=[1]", "block_length must be a whole number or none, got [1]"),
        ("confidence=1.10", """confidence must be text, got 1.1; quote it: confidence="'...'\""""),
        ("confidence=no", """confidence must be text, got False; quote it: confidence="'...'\""""),
        ("quota=evn", "quota must be one of schedule, even, got 'evn'"),
        ("stop_at_eos=1", "stop_at_eos must be true or false, got 1"),
        ("keep=1", "keep must be a list, each entry a whole number, got 1"),
        ("keep=[a]", "keep must be a list, each entry a whole number, got ['a']"),
        ("keep=12", "keep must be a list, each entry a whole number, got 12"),
        ("seed=x", "seed must be a whole number or a list, each entry a whole number, got 'x'"),
        ("steps=0", "steps must be at least 1, got 0; one step fills the whole block"),
        (
            "block_lenght=32",
            "sampler 'mdlm': unknown option 'block_lenght'. Did you mean 'block_length'? The options are steps, "
            "temperature, block_length, confidence, quota, stop_at_eos, keep, weights, seed, window, anything",
        ),
        ("steps", "option 'steps' must have the form name=value, for example -o steps=64"),
        ("=3", "option '=3' must have the form name=value, for example -o steps=64"),
        ("steps=[1", """option 'steps' cannot be read from '[1'; quote it: steps="'...'\""""),
    ],
)
def test_a_wrong_assignment_is_refused_in_one_line(assignment: str, message: str) -> None:
    assert refusal(assignment) == message


def test_more_refusals() -> None:
    assert refusal("steps=1", "steps=2") == "option 'steps' is given twice"
    assert refusal("hidden=4").startswith("sampler 'mdlm': unknown option 'hidden'.")
    assert refusal("zzzz=4").startswith("sampler 'mdlm': unknown option 'zzzz'. The options are ")
    with pytest.raises(OptionError, match="recipe: option 'name' is required"):
        from_mapping(NeedsName, {"size": 2}, what="recipe")


def test_numbers_of_numpy_and_torch_become_pythons() -> None:
    given_values = {"steps": np.int64(4), "temperature": np.float32(0.5), "keep": torch.tensor([1, 2])}
    options = from_mapping(Options, given_values, what="sampler")
    assert (options.steps, options.temperature, options.keep) == (4, 0.5, (1, 2))
    assert {type(options.steps), type(options.keep[0])} == {int}
    assert type(options.temperature) is float


def test_an_annotation_for_type_checkers_only_converts_nothing() -> None:
    @dataclass
    class Local:
        size: int
        other: Unheard

    assert coerce(Local, {"size": "3", "other": 4}) == {"size": "3", "other": 4}


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "steps": st.integers(1),
            "temperature": st.floats(allow_nan=False),
            "block_length": st.none() | st.integers(),
            "confidence": st.text(),
            "stop_at_eos": st.booleans(),
            "keep": st.lists(st.integers()).map(tuple),
            "weights": st.lists(st.floats(allow_nan=False)),
        },
    )
)
def test_values_of_the_right_type_come_through_unchanged(values: dict[str, object]) -> None:
    options = from_mapping(Options, values, what="sampler")
    assert options == Options(**values)
    assert from_mapping(Options, without_hidden(options), what="sampler") == options


def without_hidden(options: Options) -> dict[str, object]:
    return {name: value for name, value in dataclasses.asdict(options).items() if name != "hidden"}


def test_range_checks() -> None:
    at_least("steps", 1, 1)
    within("top_p", 0.0, 0.0, 1.0)
    within("top_p", 1.0, 0.0, 1.0)
    one_of("quota", "even", ("schedule", "even"))
    for check, message in [
        (lambda: at_least("temperature", -0.5, 0), "temperature must be at least 0, got -0.5"),
        (lambda: at_least("temperature", math.nan, 0), "temperature must be at least 0, got nan"),
        (lambda: within("top_p", 1.5, 0, 1), "top_p must be between 0 and 1, got 1.5"),
        (lambda: within("top_p", math.nan, 0, 1, "1 keeps all"), "top_p must be between 0 and 1, got nan; 1 keeps all"),
        (
            lambda: one_of("quota", "evn", ("schedule", "even")),
            "quota must be one of schedule, even; got 'evn'. Did you mean 'even'?",
        ),
        (
            lambda: one_of("quota", 3, ("schedule",), "see the guide"),
            "quota must be one of schedule; got 3; see the guide",
        ),
    ]:
        with pytest.raises(OptionError) as caught:
            check()
        assert str(caught.value) == message


def test_suggestions_ignore_case_and_keep_the_names_own() -> None:
    assert did_you_mean("mdlmsampler", ["MDLMSampler", "Step"]) == " Did you mean 'MDLMSampler'?"
    assert did_you_mean("x", ["MDLMSampler"]) == ""
