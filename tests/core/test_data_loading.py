"""Data sets on disk become examples: what is held out is never trained on, what is learned is what was answered."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import dllm_core as dllm
from dllm_core.cli.data import command
from dllm_core.data import load_dataset
from dllm_core.data.folder import read, save, tokenizer_fingerprint
from dllm_core.errors import DataError, OptionError
from dllm_core.models.arguments import ModelArguments

datasets = pytest.importorskip("datasets")
CHAT = [
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": "two"},
    {"role": "user", "content": "three"},
    {"role": "assistant", "content": "four"},
]


@pytest.fixture(scope="module")
def tokenizer():
    return dllm.utils.get_tokenizer(ModelArguments(model_name_or_path="llada-tiny"))


@pytest.fixture(scope="module", autouse=True)
def _quiet(tmp_path_factory):
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def write(path: Path, rows: list) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def pairs(count: int) -> list[dict[str, str]]:
    return [{"prompt": f"p{number}", "response": f"r{number}"} for number in range(count)]


def learned(example, tokenizer) -> str:
    return tokenizer.decode([label for label in example["labels"] if label != -100])


def texts(examples, tokenizer) -> list[str]:
    return [tokenizer.decode(example["input_ids"]) for example in examples]


# ------------------------------------------------------------------------------------------------------------ splits


@pytest.mark.parametrize("streaming", [False, True])
def test_one_split_is_shared_out_without_overlap(tmp_path, tokenizer, streaming):
    file = write(tmp_path / "rows.jsonl", pairs(30))
    made = load_dataset(f"{file}[train:20,test:7]", tokenizer=tokenizer, streaming=streaming)
    train, held_out = texts(made.train, tokenizer), texts(made.eval, tokenizer)
    assert (len(train), len(held_out)) == (20, 7)
    assert not set(train) & set(held_out)


def test_what_is_held_out_depends_on_the_seed_alone(tmp_path, tokenizer):
    file = write(tmp_path / "rows.jsonl", pairs(30))
    held_out = [
        texts(load_dataset(f"{file}[{limits}]", tokenizer=tokenizer, seed=seed).eval, tokenizer)
        for limits, seed in (("test:10%", 0), ("train:5,test:3", 0), ("test:3", 1))
    ]
    assert held_out[0] == held_out[1] != held_out[2]


def test_a_folder_has_its_own_splits(tmp_path, tokenizer):
    write(tmp_path / "d/train-0.jsonl", pairs(4))
    write(tmp_path / "d/train-1.jsonl", pairs(4))
    write(tmp_path / "d/test.jsonl", pairs(3))
    (tmp_path / "d/README.md").write_text("notes")
    made = load_dataset(f"{tmp_path}/d[test:2]", tokenizer=tokenizer)
    assert (len(made.train), len(made.eval)) == (8, 2)


def test_saved_parquet_and_csv_are_read_alike(tmp_path, tokenizer):
    rows = datasets.Dataset.from_list(pairs(5))
    rows.save_to_disk(str(tmp_path / "saved"))
    rows.to_parquet(str(tmp_path / "rows.parquet"))
    rows.to_csv(str(tmp_path / "rows.csv"))
    expected = texts(load_dataset(str(write(tmp_path / "rows.jsonl", pairs(5))), tokenizer=tokenizer).train, tokenizer)
    for name in ("saved", "rows.parquet", "rows.csv"):
        assert texts(load_dataset(str(tmp_path / name), tokenizer=tokenizer).train, tokenizer) == expected
    both = load_dataset(f"{tmp_path}/saved | {tmp_path}/rows.csv[train:2]", tokenizer=tokenizer)
    assert texts(both.train, tokenizer) == expected + expected[:2]


@pytest.mark.parametrize("name", ["a+b", "c[1]", "d|e", "f*g", "h i", "j,k:l", "m'n", "ö"])
def test_special_characters_in_paths(tmp_path, tokenizer, name):
    file = write(tmp_path / f"{name}.jsonl", pairs(2))
    assert len(load_dataset(f'"{file}"', tokenizer=tokenizer).train) == 2


# ----------------------------------------------------------------------------------------------------------- formats


def test_all_answers_of_a_chat_are_learned_or_the_last(tmp_path, tokenizer):
    file = write(tmp_path / "chat.jsonl", [{"messages": [*CHAT, {"role": "user", "content": "five"}]}])
    example = load_dataset(str(file), tokenizer=tokenizer).train[0]
    assert learned(example, tokenizer) == "two<|eot_id|>four<|eot_id|>"
    assert all(label in (-100, token) for token, label in zip(example["input_ids"], example["labels"], strict=True))
    assert example["labels"][example["prompt_length"]] != -100
    assert set(example["labels"][: example["prompt_length"]]) == {-100}
    last = load_dataset(str(file), tokenizer=tokenizer, supervised="last").train[0]
    assert learned(last, tokenizer) == "four<|eot_id|>"
    whole = load_dataset(str(file), tokenizer=tokenizer, mask_prompt_loss=False).train[0]
    assert whole["labels"] == whole["input_ids"] == example["input_ids"]


def test_formats_are_found_by_their_columns(tmp_path, tokenizer):
    asked, answered = {"instruction": "one", "input": "", "output": "two"}, {"role": "assistant", "content": "two"}
    shared = [
        {"messages": [CHAT[0], answered]},
        {"conversations": [{"from": "human", "value": "one"}, {"from": "gpt", "value": "two"}]},
        asked,
        {"question": "one", "answer": "two"},
        {"q": "one", "nested": {"a": ["two"]}},
    ]
    made = []
    for number, row in enumerate(shared):
        file = write(tmp_path / f"{number}.jsonl", [row])
        options = "[prompt:q,response:nested.a.0]" if "q" in row else ""
        made.append(load_dataset(f"{file}{options}", tokenizer=tokenizer).train[0])
    assert all(example == made[0] for example in made)
    assert learned(made[0], tokenizer) == "two<|eot_id|>"


EDITS = [
    {"before": "a tset\n", "after": "a test\n", "instruction": " Mend it. "},
    {"before": "right\n", "after": "right\n", "instruction": ""},
    {"before": "", "after": "new", "instruction": None},
    {"before": "gone", "after": "", "instruction": None},
    {"before": "long" * 40, "after": "long", "instruction": None},
    {"before": None, "after": "x", "instruction": None},
]


@pytest.mark.parametrize("streaming", [False, True])
def test_pairs_become_texts_and_what_they_are_made_from(tmp_path, tokenizer, streaming):
    """An instruction stands above the text before, as `dllm edit` has it; a row without begins with the start alone."""
    file = write(tmp_path / "e.jsonl", EDITS)
    made = load_dataset(str(file), tokenizer=tokenizer, streaming=streaming, max_length=100)
    told, right, new = made.train
    turns = [{"role": "user", "content": "Mend it.\n\na tset\n"}]
    front = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    assert told["input_ids"][: told["prompt_length"]] == front
    for example, row in zip((told, right, new), EDITS, strict=False):
        assert learned(example, tokenizer) == row["after"]
        assert tokenizer.decode(example["source_ids"]) == row["before"]
        assert len(example["input_ids"]) == len(example["labels"])
    assert right["input_ids"][: right["prompt_length"]] == [tokenizer.bos_token_id]
    assert made.report.counts[0].dropped == {"empty": 1, "too long": 1, "not of the format": 1}


def test_instructions_of_edits_need_a_template(tmp_path, tokenizer):
    file, bare = str(write(tmp_path / "e.jsonl", EDITS)), copy.deepcopy(tokenizer)
    bare.chat_template = None
    with pytest.raises(DataError, match="chat template"):
        load_dataset(file, tokenizer=bare)
    plain = [{name: row[name] for name in ("before", "after")} for row in EDITS[:2]]
    without = load_dataset(str(write(tmp_path / "p.jsonl", plain)), tokenizer=bare)
    assert [example["prompt_length"] for example in without.train] == [1, 1]
    assert "source_ids" in without.train.features


def test_a_template_that_rewrites_earlier_turns_is_noticed(tmp_path, tokenizer):
    import copy

    rewriting = copy.deepcopy(tokenizer)
    rewriting.chat_template = "{{ messages|length }}{% for m in messages %}{{ m.content }}{% endfor %}"
    file = write(tmp_path / "chat.jsonl", [{"messages": CHAT}])
    with pytest.raises(DataError, match="1 the template changes earlier turns"):
        load_dataset(str(file), tokenizer=rewriting)


@pytest.mark.parametrize("streaming", [False, True])
def test_text_is_cut_into_pieces_that_join_to_the_text(tmp_path, tokenizer, streaming):
    text = "one two\nthree four five\n\nsix seven\n" * 20
    (tmp_path / "book.txt").write_text(text)
    options = {"max_length": 16, "drop_tail": False, "streaming": streaming}
    examples = list(load_dataset(str(tmp_path / "book.txt"), tokenizer=tokenizer, **options).train)
    assert {len(example["input_ids"]) for example in examples[:-1]} == {16}
    assert "".join(texts(examples, tokenizer)) == text
    assert all(example["labels"] == example["input_ids"] for example in examples)


def test_held_out_text_is_the_end_of_the_book(tmp_path, tokenizer):
    lines = [f"line {number}\n" for number in range(40)]
    (tmp_path / "book.txt").write_text("".join(lines))
    made = load_dataset(f"{tmp_path}/book.txt[test:25%]", tokenizer=tokenizer, max_length=8, drop_tail=False)
    assert "".join(texts(made.eval, tokenizer)) == "".join(lines[30:])


# ------------------------------------------------------------------------------------------------ what is left out


@pytest.mark.parametrize("streaming", [False, True])
def test_the_report_says_what_was_left_out_and_why(tmp_path, tokenizer, streaming):
    rows = [
        {"messages": CHAT},
        {"messages": CHAT[:1]},
        {"messages": [CHAT[0], {"role": "assistant", "content": "long " * 60}]},
        {"messages": [{"role": "user", "content": "long " * 60}, CHAT[1]]},
        {"messages": []},
        {"messages": None},
    ]
    made = load_dataset(
        str(write(tmp_path / "chat.jsonl", rows)), tokenizer=tokenizer, max_length=60, streaming=streaming
    )
    examples = list(made.train)
    counts = made.report.counts[0]
    assert (counts.rows, counts.examples, counts.cut) == (6, 2, 1)
    assert counts.dropped == {
        "without an answer": 1,
        "nothing to learn within max_length": 1,
        "empty": 1,
        "not of the format": 1,
    }
    assert counts.tokens == sum(len(example["input_ids"]) for example in examples)
    assert counts.learned_tokens == sum(label != -100 for example in examples for label in example["labels"])


def test_filter_leaves_long_rows_out(tmp_path, tokenizer):
    file = write(tmp_path / "rows.jsonl", [*pairs(3), {"prompt": "p", "response": "long " * 99}])
    made = load_dataset(str(file), tokenizer=tokenizer, max_length=60, truncation="filter")
    assert (len(made.train), made.report.counts[0].dropped) == (3, {"too long": 1})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", "its columns a, b fit no format. Wanted are tokens: input_ids"),
        ("[format:chat]", "do not fit format chat. Wanted are chat: messages"),
        ("[prompt:a,response:c]", "has no column 'c' for response; its columns are a, b"),
        ("[eval_split:dev]", "has no split 'dev'"),
        ("[test:9]", "leave none to train on"),
        ("[validation:5,trian:5]", "limits split 'trian'. Did you mean 'train'?"),
    ],
)
def test_columns_and_splits_that_are_not_there_are_named(tmp_path, tokenizer, options, message):
    file = write(tmp_path / "rows.jsonl", [{"a": "x", "b": "y"}] * 8)
    with pytest.raises(DataError) as caught:
        load_dataset(f"{file}{options}", tokenizer=tokenizer)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_path_that_is_not_there_is_not_looked_for_on_the_hub(tmp_path, tokenizer):
    with pytest.raises(DataError, match="no file or folder"):
        load_dataset(f"{tmp_path}/nothing.jsonl", tokenizer=tokenizer)


# ---------------------------------------------------------------------------------------------------- prepared data


def test_a_prepared_folder_gives_the_same_examples_and_knows_its_tokenizer(tmp_path, tokenizer):
    import copy

    file = write(tmp_path / "rows.jsonl", pairs(9))
    made = load_dataset(f"{file}[test:2]", tokenizer=tokenizer, max_length=64)
    folder = tmp_path / "prepared"
    save(made, folder, spec=str(file), fingerprint=tokenizer_fingerprint(tokenizer))
    again = read(folder, tokenizer=tokenizer, max_length=64)
    assert (again.train[:], again.eval[:], again.options) == (made.train[:], made.eval[:], made.options)
    assert json.loads((folder / "dllm_data.json").read_text())["report"]["sets"][0]["rows"] == 7
    assert sorted(path.name for path in tmp_path.iterdir()) == ["prepared", "rows.jsonl"]
    other = copy.deepcopy(tokenizer)
    other.chat_template = "x" + other.chat_template
    with pytest.raises(DataError, match="another tokenizer or chat template"):
        read(folder, tokenizer=other)
    with pytest.raises(OptionError, match="max_length=64, this training asks for 32"):
        read(folder, tokenizer=tokenizer, max_length=32)
    with pytest.raises(OptionError, match="is there already"):
        save(made, folder, spec=str(file), fingerprint="")


def test_the_command_prepares_and_shows(tmp_path):
    file = write(tmp_path / "rows.jsonl", [{"prompt": "3 + 4 =", "response": "7"}, {"prompt": "", "response": "x"}])
    shown = CliRunner().invoke(command, ["show", str(file), "--tokenizer", "llada-tiny"], catch_exceptions=False)
    assert "\u27e67<|eot_id|>\u27e7" in shown.stdout
    assert "1 empty" in " ".join(shown.stderr.split())
    out = str(tmp_path / "out")
    done = CliRunner().invoke(command, ["prepare", str(file), out, "--json"], catch_exceptions=False)
    report = json.loads(done.stdout)
    assert report["sets"][0]["dropped"] == {"empty": 1}
    assert report["output"] == out


def test_arguments_of_scripts_are_used(tmp_path, tokenizer):
    file = write(tmp_path / "rows.jsonl", pairs(3))
    arguments = dllm.DataArguments(dataset_args=f"{file}[train:2]", max_length=3)
    assert len(dllm.utils.get_dataset(dllm.DataArguments(dataset_args=str(file)), tokenizer).train) == 3
    with pytest.raises(DataError, match="no example came of 2 rows"):
        dllm.utils.get_dataset(arguments, tokenizer)


def test_without_the_library_there_is_one_line_with_the_command():
    code = "import sys; sys.modules['datasets'] = None\nfrom dllm_core.data.sources import import_datasets\n"
    code += (
        "from dllm_core.errors import DllmError\ntry:\n    import_datasets()\nexcept DllmError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "data sets need the library datasets: pip install 'dllm-core[train]'\n"
