"""The data of llada-tiny: nothing held out can be trained on, everything has one right answer, all is reproducible."""

from __future__ import annotations

import random
import re
from itertools import islice

import pytest
from dllm_llada.tiny import sudoku
from dllm_llada.tiny.generate import (
    GIVEN,
    MAIN,
    OPEN_LINES,
    WARM_UP,
    encode,
    encode_line,
    encode_turn,
    exercises,
    training_examples,
)
from dllm_llada.tiny.splits import SPLITS, split_of, stable_hash
from dllm_llada.tiny.tasks import INSTRUCTIONS, SKILLS, SMALL_START, Line, Turn
from dllm_llada.tiny.tokenizer import CONTEXT, MASK, build_tokenizer
from dllm_llada.tiny.words import word_split
from hypothesis import given, settings
from hypothesis import strategies as st


def draws(skill: str, split: str, count: int, seed: int = 0) -> list[Turn | Line]:
    return list(islice(exercises(split, seed, (skill,)), count))


@pytest.mark.parametrize("skill", SKILLS)
def test_no_item_is_drawn_on_both_splits(skill):
    items = {split: {one.item for one in draws(skill, split, 1500)} for split in SPLITS}
    assert items["train"]
    assert items["held_out"]
    assert not items["train"] & items["held_out"]


@pytest.mark.parametrize("skill", [skill for skill in SKILLS if skill != "sudoku"])
@pytest.mark.parametrize("split", SPLITS)
def test_the_hash_of_the_item_decides_the_split(skill, split):
    assert {split_of(one.item) for one in draws(skill, split, 500)} == {split}


def test_an_operand_pair_is_held_out_in_both_orders_and_in_every_skill_that_uses_it():
    trained = {one.item for skill in ("addition", "equation") for one in draws(skill, "train", 2000)}
    for one in draws("addition", "held_out", 500):
        a, b = map(int, re.findall(r"\d+", one.request))
        assert f"pair:{min(a, b)}+{max(a, b)}" == one.item
        assert one.item not in trained


def test_words_are_held_out_across_skills():
    trained = {one.item for skill in ("reversal", "instructions", "mirror") for one in draws(skill, "train", 2000)}
    held_out = {one.item for skill in ("reversal", "instructions", "mirror") for one in draws(skill, "held_out", 1000)}
    assert not trained & held_out


def test_the_hash_is_the_same_on_every_machine():
    assert stable_hash("llada-tiny/word:stone") == 6245225235451835693
    assert word_split("stone") == "train"
    assert word_split("matrix") == "held_out"


def test_one_item_in_ten_is_held_out():
    share = sum(split_of(f"word:{number}") == "held_out" for number in range(10_000)) / 10_000
    assert 0.09 < share < 0.11


def test_sudoku_has_288_grids_in_two_symmetry_classes_and_the_smaller_is_held_out():
    smaller, larger = sudoku.symmetry_classes()
    assert (len(smaller), len(larger)) == (96, 192)
    assert set(sudoku.grids_of("held_out")) == smaller
    assert set(sudoku.grids_of("train")) == larger
    assert smaller | larger == set(sudoku.all_grids())


def test_no_relabelling_of_a_held_out_grid_is_trained_on():
    trained = {sudoku.relabelled(grid) for grid in sudoku.grids_of("train")}
    held_out = {sudoku.relabelled(grid) for grid in sudoku.grids_of("held_out")}
    assert (len(held_out), len(trained)) == (4, 8)
    assert not trained & held_out


@given(seed=st.integers(0, 10**6), split=st.sampled_from(SPLITS))
@settings(max_examples=50, deadline=None)
def test_a_puzzle_has_one_solution_and_it_is_its_grid(seed, split):
    rng = random.Random(seed)
    grid = rng.choice(sudoku.grids_of(split))
    puzzle = sudoku.make_puzzle(grid, rng)
    assert brute_force_solutions(puzzle) == [grid]
    assert all(clue in (sudoku.EMPTY, cell) for clue, cell in zip(puzzle, grid, strict=True))


def brute_force_solutions(puzzle: str) -> list[str]:
    """Independent of the list of grids: fills the first empty cell with whatever its row, column and box allow."""
    if sudoku.EMPTY not in puzzle:
        return [puzzle]
    cell = puzzle.index(sudoku.EMPTY)
    row, column = divmod(cell, 4)
    seen = set()
    for other, digit in enumerate(puzzle):
        r, c = divmod(other, 4)
        if r == row or c == column or (r // 2, c // 2) == (row // 2, column // 2):
            seen.add(digit)
    filled = (puzzle[:cell] + digit + puzzle[cell + 1 :] for digit in "1234" if digit not in seen)
    return [solution for attempt in filled for solution in brute_force_solutions(attempt)]


def right_answer(turn: Turn) -> str:
    """The answer worked out again from the text of the request alone."""
    request = turn.request
    if turn.skill == "addition":
        return str(sum(map(int, re.findall(r"\d+", request))))
    if turn.skill == "sorting":
        return "".join(sorted(request.removeprefix("sort ")))
    if turn.skill == "reversal":
        return request.removeprefix("reverse ")[::-1]
    if turn.skill == "sudoku":
        (solution,) = brute_force_solutions(request.removeprefix("solve ").replace(" ", ""))
        return sudoku.rows(solution, "\n")
    (answer,) = {
        follow(match[1])
        for instruction, follow in INSTRUCTIONS.items()
        if (match := re.fullmatch(instruction.replace("{}", r"([a-z]+)"), request))
    }
    return answer


@pytest.mark.parametrize("skill", ["sudoku", "addition", "sorting", "reversal", "instructions"])
def test_answers_are_right(skill):
    for turn in draws(skill, "train", 300):
        assert turn.answer == right_answer(turn)


@pytest.mark.parametrize("skill", ["progression", "equation", "mirror"])
def test_the_holes_of_a_line_have_one_filling(skill):
    for line in draws(skill, "train", 40):
        assert line.holes
        assert solutions_of(line) == {line.text}


def solutions_of(line: Line) -> set[str]:
    """Every line of the same shape that agrees with what is visible."""
    pattern = re.compile(re.escape(line.with_holes("\0")).replace("\0", ".").replace("\\\0", "."))
    if line.skill == "progression":
        pairs = ((start, step) for start in range(1, 300) for step in range(1, 30))
        candidates = (" ".join(str(start + step * number) for number in range(6)) for start, step in pairs)
    elif line.skill == "equation":
        candidates = (f"{a}+{b}={a + b}" for a in range(10, 100) for b in range(10, 100))
    else:
        half = len(line.text) // 2
        shown = line.with_holes("\0")
        word = "".join(max(left, right) for left, right in zip(shown[:half], reversed(shown[half + 1 :]), strict=True))
        candidates = (f"{word}|{word[::-1]}",)
    return {candidate for candidate in candidates if pattern.fullmatch(candidate)}


def test_the_stream_is_decided_by_its_seed():
    def first(seed: int) -> list[dict]:
        return list(training_examples(seed=seed, count=200, batch_size=8))

    assert first(3) == first(3)
    assert first(3) != first(4)


def test_every_stage_practises_every_skill_at_its_rate():
    drawn = [one.skill for one in islice(exercises("train", 0, warm_up=5000), 10_000)]
    for stage, part in ((WARM_UP, drawn[:5000]), (MAIN, drawn[5000:])):
        assert set(stage.weights) == set(stage.makers) == set(SKILLS)
        assert sum(stage.weights.values()) == pytest.approx(1)
        for skill, weight in stage.weights.items():
            assert abs(part.count(skill) / 5000 - weight) < 0.025


def test_the_warm_up_draws_its_items_from_the_same_split():
    easy = [one.item for one in islice(exercises("train", 0, ("progression",), warm_up=1000), 1000)]
    starts = [int(re.findall(r"\d+", item)[0]) for item in easy]
    assert (
        max(starts)
        <= SMALL_START
        < max(int(re.findall(r"\d+", one.item)[0]) for one in draws("progression", "train", 99))
    )
    assert {split_of(item) for item in easy} == {"train"}


def test_neighbours_need_little_padding_and_all_fit_the_context():
    lengths = [len(one["input_ids"]) for one in training_examples(count=6400, batch_size=64)]
    assert len(lengths) == 6400
    assert max(lengths) <= CONTEXT
    padded = sum(64 * max(lengths[start : start + 64]) for start in range(0, len(lengths), 64))
    assert padded < 1.2 * sum(lengths)


def test_the_encoding_of_a_turn_is_that_of_the_tokenizer_and_its_chat_template():
    tokenizer = build_tokenizer()
    for turn in (one for one in islice(exercises("train", 0), 500) if isinstance(one, Turn)):
        messages = [{"role": "user", "content": turn.request}, {"role": "assistant", "content": turn.answer}]
        whole = tokenizer(tokenizer.apply_chat_template(messages, tokenize=False))["input_ids"]
        prompt = tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
        example = encode_turn(turn, tail=3)
        assert example["input_ids"] == whole + [tokenizer.eos_token_id] * 3
        given_tokens = len(tokenizer(prompt)["input_ids"])
        assert example["labels"] == [GIVEN] * given_tokens + example["input_ids"][given_tokens:]


def test_the_encoding_of_a_line_teaches_its_holes():
    tokenizer = build_tokenizer()
    line = Line(skill="equation", item="", text="12+35=47", holes=(3, 4))
    example = encode_line(line, tail=1, with_start=False, everywhere=False)
    assert example["input_ids"] == [*tokenizer("12+35=47")["input_ids"], tokenizer.eos_token_id]
    taught = [place for place, label in enumerate(example["labels"]) if label != GIVEN]
    assert taught == [3, 4, 8]
    assert tokenizer.decode([example["labels"][place] for place in (3, 4)]) == "35"
    assert tokenizer(line.with_holes(MASK))["input_ids"].count(tokenizer.mask_token_id) == 2
    everywhere = encode_line(line, tail=0, with_start=True, everywhere=True)
    assert everywhere["labels"] == [GIVEN, *example["input_ids"][:-1]]


def test_lines_are_framed_in_every_way():
    line = Line(skill="equation", item="", text="12+35=47", holes=(3, 4))
    rng = random.Random(0)
    examples = [encode(line, rng) for _ in range(400)]
    frames = {(one["input_ids"][0] == build_tokenizer().bos_token_id, one["input_ids"][-1] == 0) for one in examples}
    assert frames == {(True, True), (True, False), (False, True), (False, False)}
    assert 0 < OPEN_LINES < 1


@given(st.text(alphabet=st.characters(min_codepoint=32, max_codepoint=126), max_size=60))
def test_the_tokenizer_gives_back_what_it_was_given(text):
    tokenizer = build_tokenizer()
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_one_token_a_character_and_one_a_header(tmp_path):
    from transformers import AutoTokenizer

    build_tokenizer().save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer(tokenizer.apply_chat_template([{"role": "user", "content": "a user\nünder"}], tokenize=False))
    tokens = tokenizer.convert_ids_to_tokens(ids["input_ids"])
    header = "<|start_header_id|>user<|end_header_id|>\n\n"
    assert tokens == ["<|startoftext|>", header, *"a user\n", "<|unk|>", *"nder", "<|eot_id|>"]
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    assert len(tokenizer) == tokenizer.vocab_size
