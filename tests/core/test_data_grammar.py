"""The grammar of data sets: what is written parses back, whatever stands in names, and nothing is guessed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dllm_core.data.grammar import OPTIONS, DataPart, Limit, format_spec, parse_spec
from dllm_core.errors import DataError

words = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=12)
splits = words.filter(lambda word: word not in OPTIONS)
limits = st.one_of(
    st.builds(Limit, count=st.integers(1, 10**9)),
    st.builds(Limit, percent=st.integers(1, 10_000).map(lambda n: n / 100)),
)
parts = st.builds(
    DataPart,
    words,
    st.dictionaries(splits, limits, max_size=2),
    st.dictionaries(st.sampled_from(sorted(set(OPTIONS) - {"name"})), words, max_size=3),
)


@given(st.lists(parts, min_size=1, max_size=3).map(tuple))
def test_what_is_written_parses_back(written):
    assert parse_spec(format_spec(written)) == written


@given(st.text(max_size=30))
def test_any_text_parses_to_what_can_be_written_or_is_refused(text):
    try:
        parsed = parse_spec(text)
    except DataError:
        return
    assert parse_spec(format_spec(parsed)) == parsed


def test_limits_options_and_concatenation():
    first, second = parse_spec(
        "owner/name[train:10_000, test:5%, name:2024] + 'a+b|c.jsonl'[prompt:q,response:\"a:b\"]"
    )
    assert first == DataPart(
        "owner/name", {"train": Limit(count=10_000), "test": Limit(percent=5.0)}, {"subset": "2024"}
    )
    assert second == DataPart("a+b|c.jsonl", {}, {"prompt": "q", "response": "a:b"})


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "expected a data set's name"),
        ("a+", "got the end"),
        ("a||b", "got '|'"),
        ("a[train:10", "closed by ]"),
        ("a[train]", "write train:value"),
        ("a[train:10]b", "followed by | or +"),
        ("a[lang:python]", "neither rows of a split"),
        ("a[reponse:x]", "Did you mean 'response'?"),
        ("a[train:0]", "neither rows of a split"),
        ("a[train:101%]", "neither rows of a split"),
        ("a[train:1,train:2]", "given twice"),
        ("'a", "close quotes"),
    ],
)
def test_what_is_wrong_is_said(spec, message):
    with pytest.raises(DataError, match=message.replace("|", r"\|").replace("?", r"\?").replace("+", r"\+")):
        parse_spec(spec)
