"""Checks of what a sampler gives back: the texts, their lengths, and the options that shape them.

Shapes: B rows, L canvas length, V vocabulary, D length of the toy's joint.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from dllm_core.conformance.expect import expect, expect_equal
from dllm_core.conformance.sampler_suite import (
    CANVASES,
    END,
    LENGTH,
    MASK,
    NEW,
    PAD,
    PROMPTS,
    VOCAB,
    SamplerSuite,
    completions,
    fresh,
    independent,
    start_of,
    steps_of,
    texts,
)
from dllm_core.conformance.suite import requires
from dllm_core.conformance.toy import random_joint
from dllm_core.models.denoiser import Denoiser
from dllm_core.samplers.view import FULL


class OutputChecks(SamplerSuite):
    """What a sampler gives back."""

    def test_prompt_is_untouched(self) -> None:
        """Every prompt comes back as it went in, after every step.

        Why: a canvas laid out or written with the wrong offset overwrites the question and still gives fluent text;
        trimming of padding that guesses where a prompt begins did so (ZHZisZZ/dllm utils/sampling.py, sample_trim).

        Mend: write only at positions that held a mask; put rows back with their own lengths, padding on the right.
        """
        for words, sampler in self.settings(self.denoiser(eos=END, pad=PAD)):
            for step in steps_of(sampler, PROMPTS):
                for row, prompt in zip(step.input_ids.tolist(), PROMPTS, strict=True):
                    expect_equal(row[: len(prompt)], prompt, f"step {step.index} with {words} changes a prompt")
            rows = texts(sampler.sample(fresh(PROMPTS)))
            got = [row[: len(prompt)] for row, prompt in zip(rows, PROMPTS, strict=True)]
            expect_equal(got, PROMPTS, f"the result with {words} changes a prompt")

    def test_no_mask_is_left(self) -> None:
        """Every position of a result holds a token, for all step budgets, block sizes and schedules.

        Why: planned commits that add up to less than the masks leave holes; Fast-dLLM's dual cache ends a block early
        where steps are fewer than tokens (NVlabs/Fast-dLLM issue 54).

        Mend: commit what is left in the last step of a block, or go on while a mask is left.
        """
        for words, sampler in self.settings(self.denoiser(eos=END, pad=PAD)):
            for row, text in enumerate(texts(sampler.sample(fresh(PROMPTS)))):
                expect(MASK not in text, f"row {row} with {words} still holds a mask: {text}; write every position")

    def test_mask_token_is_never_chosen(self) -> None:
        """A model that scores the mask token highest everywhere still gives text.

        Why: published samplers never exclude the mask token, so that a position that counts as written stays masked
        for good (ZHZisZZ/dllm, every sampler; undertrained checkpoints do favour it).

        Mend: set the mask token's score to -inf before a token is chosen (`dllm_core.samplers.proposals.propose`).
        """
        denoiser = self.denoiser(eos=END, pad=PAD)
        with torch.no_grad():
            head = denoiser.model.get_output_embeddings()
            head.weight[MASK, MASK] = -0.1  # the mask token then scores +6, every other token below 0
        for words, sampler in self.settings(denoiser):
            rows = texts(sampler.sample(fresh(PROMPTS)))
            if self.supports_infill:
                rows += texts(sampler.infill(fresh(CANVASES)))
            expect(not any(MASK in row for row in rows), f"with {words} the mask token is chosen: {rows}; exclude it")

    def test_lengths_are_those_asked_for(self) -> None:
        """Sequences, lengths and prompt lengths describe each row; without a tokenizer there are no texts.

        Why: whoever cuts completions out of ``sequences`` relies on ``prompt_lengths`` and ``lengths``; lengths of the
        whole batch instead of the row give padding to the reader as text.

        Mend: fill `SampleOutput` row by row: lengths with the prompt, sequences (B, L) int64 padded on the right.
        """
        output = self.make(self.denoiser(pad=PAD)).sample(fresh(PROMPTS))
        expect_equal(output.prompt_lengths, torch.tensor([len(prompt) for prompt in PROMPTS]), "prompt_lengths")
        expect_equal(output.lengths, torch.tensor([len(prompt) + NEW for prompt in PROMPTS]), "lengths")
        expect_equal(tuple(output.sequences.shape), (len(PROMPTS), LENGTH), "shape of sequences")
        expect_equal(output.sequences.dtype, torch.int64, "dtype of sequences")
        expect(output.texts is None, f"texts without a tokenizer: {output.texts}; give None")

    def test_texts_are_the_completions(self) -> None:
        """With a tokenizer, prompts may be text, and ``texts`` are the completions up to the end of sequence.

        Why: texts that repeat the prompt, run on after the end, or show special tokens spoil every score.

        Mend: decode each row from its prompt's length to its first end of sequence, special tokens left out.
        """
        denoiser = self.denoiser(eos=END, pad=PAD, with_words=True)
        for seed in range(3):
            sampler = self.make(denoiser, temperature=self.temperature, seed=seed)
            output = sampler.sample([_words(prompt) for prompt in PROMPTS])
            expect_equal(output.sequences, sampler.sample(fresh(PROMPTS)).sequences, "sequences of text and of its ids")
            expect_equal(output.texts, [_words(row) for row in completions(output, end=END)], "texts of completions")

    def test_max_length_holds_for_one_call(self) -> None:
        """``sample(prompts, max_length=n)`` makes rows of n tokens, this time only.

        Why: it is how the field's published example asks for a length; an option that sticks changes later calls.

        Mend: make a copy of the options for the call, as `Sampler.sample` does.
        """
        sampler = self.make(self.denoiser(pad=PAD))
        for max_length in (5, None, 6):
            want = [len(prompt) + NEW if max_length is None else max_length for prompt in PROMPTS]
            got = sampler.sample(fresh(PROMPTS), max_length=max_length).lengths
            expect_equal(got.tolist(), want, f"lengths with max_length={max_length}")

    @requires("follows_steps")
    def test_one_greedy_step_takes_the_best_tokens(self) -> None:
        """With one step at temperature 0 every position gets the model's most probable token.

        Why: scores read one position off, from padded rows, or through a wrong mask still give plausible text.

        Mend: ask `Denoiser.logits` for the open positions and take its rows as they come: row i scores position i.
        """
        denoiser = self.denoiser(eos=END, pad=PAD)
        got = self.make(denoiser, steps=1, block_size=None, temperature=0.0).sample(fresh(PROMPTS))
        for prompt, text in zip(PROMPTS, texts(got), strict=True):
            expect_equal(text[len(prompt) :], best_tokens(denoiser, [prompt])[0], f"completion of {prompt} in one step")

    @requires("follows_steps")
    @requires("supports_temperature")
    def test_one_token_is_left_by_top_k_1_and_by_a_small_top_p(self) -> None:
        """``top_k=1``, or a ``top_p`` that one token fills, leave nothing to chance.

        Why: a cut that is applied after the draw, or to ids instead of scores, lets unlikely tokens through.

        Mend: set the scores outside the k best and outside the nucleus to -inf before drawing.
        """
        denoiser = self.denoiser(pad=PAD)
        want = [best_tokens(denoiser, [prompt])[0] for prompt in PROMPTS]
        for cut in ({"top_k": 1}, {"top_p": 1e-6}):
            sampler = self.make(denoiser, steps=1, block_size=None, temperature=1.0, **cut)
            got = completions(sampler.sample(fresh(PROMPTS)))
            expect_equal(got, want, f"completions with temperature=1 and {cut}")

    @requires("ranks_by_confidence")
    def test_surest_positions_are_written_first(self) -> None:
        """Positions are written in the order of the model's confidence; suppressed confidence comes last.

        Why: confidence that is measured after a low temperature ties, and any-order decoding turns into left to right
        (DreamLM/Dream issue 72).

        Mend: rank by the confidence on the model's own distribution; rank ``suppress_confidence_tokens`` last.
        """
        best = torch.tensor([0, 0, 1, 0, 1])  # of each position; position 0 is the prompt
        sure = torch.tensor([0.5, 0.7, 0.6, 0.8, 0.9], dtype=torch.float64)
        other = ((1 - sure) / (VOCAB - 1))[:, None].expand(-1, VOCAB)
        denoiser = self.denoiser(independent(other.scatter(1, best[:, None], sure[:, None])))
        for suppressed, tied, want in (((), 0, [4, 3, 1, 2]), ((1,), 2, [3, 1, 2, 4]), ((0,), 2, [4, 2, 1, 3])):
            options = {"suppress_confidence_tokens": suppressed, "block_size": None, "temperature": 0.0}
            steps = steps_of(self.make(denoiser, **options), [[0]])
            order = [position for step in steps for position in step.committed[0].nonzero()[:, 0].tolist()]
            # Suppressed ones tie at the bottom: any order among them is right.
            got, wanted = ([*each[: 4 - tied], set(each[4 - tied :])] for each in (order, want))
            expect_equal(got, wanted, f"order of writing with suppress_confidence_tokens={suppressed}")

    @requires("follows_steps")
    def test_suppressed_confidence_leaves_the_tokens_alone(self) -> None:
        """``suppress_confidence_tokens`` changes when a token is written, never which.

        Why: published options of this kind promise one and do the other: Fast-dLLM's begin_suppress forbids the
        token, the existing framework's only lowers its confidence.

        Mend: choose the token first, then lower its confidence.
        """
        denoiser = self.denoiser(pad=PAD)
        plain, *others = (
            texts(self.make(denoiser, steps=1, block_size=None, **options).sample(fresh(PROMPTS)))
            for options in ({}, *({"suppress_confidence_tokens": [token]} for token in range(VOCAB)))
        )
        for token, got in enumerate(others):
            expect_equal(got, plain, f"one step with suppress_confidence_tokens=[{token}]")

    def test_suppressed_tokens_never_appear(self) -> None:
        """``suppress_tokens`` are never written, whatever the temperature.

        Why: an option named suppress that is applied after the token was chosen only changes its rank.

        Mend: set their scores to -inf before a token is chosen.
        """
        for token, temperature in itertools.product(range(VOCAB), {0.0, self.temperature}):
            sampler = self.make(self.denoiser(pad=PAD), suppress_tokens=[token], temperature=temperature)
            rows = completions(sampler.sample(fresh(PROMPTS) * 4))
            expect(
                not any(token in row for row in rows),
                f"token {token} is written although suppressed (temperature {temperature}): {rows}; forbid it first",
            )

    @requires("stops_at_eos")
    def test_end_of_sequence_saves_work_and_keeps_the_text(self) -> None:
        """``stop_at_eos`` gives the same text as running on, with fewer forward passes, and ends no other row.

        Why: published samplers run to the end of the canvas, or end all rows with the first one, which leaves masks in
        the others (source: ZHZisZZ/dllm llada2/sampler.py).

        Mend: end a row when its block is complete and holds an end of sequence; fill the rest with it, count nothing.
        """
        share = torch.tensor([0.3, 0.2, 0.5], dtype=torch.float64).expand(LENGTH, VOCAB)
        joint = random_joint(VOCAB, LENGTH, seed=2) * independent(share)
        for block_size, seed in itertools.product((1, 3), range(4)):
            options = {"block_size": block_size, "temperature": self.temperature, "seed": seed}
            stopped, ran_on = (
                self.make(self.denoiser(joint / joint.sum(), eos=END), stop_at_eos=stop, **options).sample(
                    fresh(PROMPTS)
                )
                for stop in (True, False)
            )
            got, want = (completions(output, end=END) for output in (stopped, ran_on))
            expect_equal(got, want, f"texts that end early, {options}")
            masked = [text for text in texts(stopped) if MASK in text]
            expect(not masked, f"a row that ends early holds masks, {options}: {masked}; fill it")
        certain = self.denoiser(independent(torch.tensor([0.1, 0.2, 0.7]).double().expand(LENGTH, VOCAB)), eos=END)
        stopped, ran_on = (
            self.make(certain, block_size=1, temperature=0.0, stop_at_eos=stop).sample([1]).stats.forward_passes
            for stop in (True, False)
        )
        expect_equal(
            stopped * NEW, ran_on, "forward passes where the first of four equal blocks ends the text, times 4"
        )

    @requires("supports_infill")
    def test_infill_touches_masks_only(self) -> None:
        """Infilling fills every mask, keeps every given token, and ends at no end of sequence.

        Why: infilling is often a second copy of the sampling loop, in which fixes are forgotten; an end of sequence
        inside given text is not the end of it.

        Mend: lay the canvas out with `dllm_core.samplers.canvas.infill_canvas` and run the same loop.
        """
        for words, sampler in self.settings(self.denoiser(eos=END, pad=PAD)):
            output = sampler.infill(fresh(CANVASES))
            for canvas, text in zip(CANVASES, texts(output), strict=True):
                kept = [token if given != MASK else MASK for given, token in zip(canvas, text, strict=False)]
                expect_equal(kept, canvas, f"given tokens of a canvas infilled with {words}")
                expect(MASK not in text, f"canvas {canvas} infilled with {words} still holds a mask: {text}; fill it")
            expect_equal(output.lengths.tolist(), [len(canvas) for canvas in CANVASES], "lengths of infilled canvases")
            expect_equal(output.prompt_lengths.tolist(), [0] * len(CANVASES), "prompt_lengths of infilled canvases")

    @requires("supports_shifted_logits")
    def test_right_shift_changes_nothing(self) -> None:
        """A family whose logits predict the next token gives the same texts.

        Why: a sampler that calls the model instead of the denoiser, or that shifts by itself, is right for one half of
        the families and garbage for the other (families differ exactly in this).

        Mend: read scores through `Denoiser.logits` only; the adapter declares the shift and the denoiser undoes it.
        """
        # Where blocks look back only, a block's first token is scored from where less is seen; not so in blocks of one.
        block_size = 3 if self.load_component().attention == FULL else 1
        for temperature in {0.0, self.temperature}:
            options = {"block_size": block_size, "temperature": temperature}
            plain, shifted = (
                texts(self.make(self.denoiser(pad=PAD, shifted=shift), **options).sample(fresh(PROMPTS)))
                for shift in (False, True)
            )
            expect_equal(shifted, plain, f"texts of a right-shifted model with {options}")

    @requires("supports_guidance")
    @requires("follows_steps")
    def test_guidance_is_the_published_formula(self) -> None:
        """Guided scores are un + (s + 1)(cond - un), where ``un`` sees the kept tokens of the prompt only.

        Why: implementations differ by one in the scale, and one published code forgets the kept tokens' mask without
        an attention mask (official LLaDA generate.py).

        Mend: combine with `dllm_core.samplers.proposals.guided`; mask every given token that is not to be kept.
        """
        denoiser = self.denoiser()
        prompts = [list(prompt) for prompt in itertools.product(range(VOCAB), repeat=3)]
        for keep in ((), (0,)):
            bare = [[token if token in keep else MASK for token in prompt] for prompt in prompts]
            want = best_tokens(denoiser, prompts, bare, scale=1.5)
            options = {"guidance_scale": 1.5, "guidance_keep_tokens": keep, "steps": 1, "block_size": None}
            got = completions(self.make(denoiser, temperature=0.0, **options).sample(prompts))
            wrong = [prompt for prompt, a, b in zip(prompts, got, want, strict=True) if a != b]
            expect(not wrong, f"guidance 1.5 with kept tokens {keep} gives other tokens than the formula after {wrong}")


def best_tokens(
    denoiser: Denoiser, prompts: list[list[int]], bare: list[list[int]] | None = None, scale: float = 0.0
) -> list[list[int]]:
    """The most probable tokens after prompts of one length, guided against ``bare`` ones where given."""
    scores = _scores(denoiser, prompts)
    if bare is not None:
        unconditional = _scores(denoiser, bare)
        scores = unconditional + (scale + 1) * (scores - unconditional)
    return scores[:, len(prompts[0]) :, :VOCAB].argmax(-1).tolist()


def _words(tokens: list[int]) -> str:
    return " ".join(f"w{token}" for token in tokens)


@torch.no_grad()
def _scores(denoiser: Denoiser, prompts: list[list[int]]) -> Tensor:
    return denoiser.logits(start_of(prompts)).double()
