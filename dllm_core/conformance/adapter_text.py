"""Checks of the tokenizer: special tokens, the mask, and chats that end where an answer begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dllm_core.conformance.adapter_suite import CHAT, AdapterSuite
from dllm_core.conformance.expect import expect, expect_equal
from dllm_core.conformance.suite import requires
from dllm_core.errors import ModelLoadError
from dllm_core.models.denoiser import Denoiser
from dllm_core.samplers.prompts import encode

ANSWER = "so be it"


class TextChecks(AdapterSuite):
    """What the tokenizer is once the adapter has prepared it."""

    @requires("has_tokenizer")
    def test_special_tokens_lie_inside_the_embedding(self) -> None:
        """Every id that the prepared tokenizer can give has a row in the embedding.

        Why: a mask token that is added without resizing gets the id right behind the embedding, and the first forward
        pass is an index error (ZHZisZZ/dllm's converted Llama models).

        Mend: name in ``mask_token`` a token that the vocabulary has; leave room in `tiny_config` for all tokens.
        """
        try:
            denoiser = self.denoiser()
        except ModelLoadError as error:
            raise AssertionError(f"{error}; or raise the vocabulary of tiny_config()") from error
        highest = max(denoiser.tokenizer.get_vocab().values())
        fits = highest < denoiser.vocab_size
        expect(fits, f"the prepared tokenizer gives ids up to {highest}, the embedding has {denoiser.vocab_size} rows")

    @requires("has_tokenizer")
    def test_preparing_a_tokenizer_twice_is_preparing_it_once(self) -> None:
        """A tokenizer that is prepared again, as a saved one is when it is loaded, stays as it is.

        Why: each loading of a checkpoint prepares its tokenizer; tokens that are added every time push ids upwards.

        Mend: look in the vocabulary before adding; set, do not append.
        """
        once = self.prepared_tokenizer()
        before = _traits(once)
        after = _traits(self.adapter().prepare_tokenizer(once))
        for name, value in before.items():
            expect(after[name] == value, f"preparing the tokenizer again changes its {name}; look before adding")

    @requires("has_tokenizer")
    def test_mask_is_one_token_of_its_own(self) -> None:
        """The mask token's text is exactly one id, different from every other special one, and skipped in plain text.

        Why: a mask that is also padding or end of sequence cannot be told from them: samplers would fill the padding
        and stop at gaps. A mask that plain text can hold turns prompts into canvases.

        Mend: declare ``mask_token``, and add it to the tokenizer's special tokens in `prepare_tokenizer`.
        """
        denoiser, adapter = self.denoiser(), self.adapter()
        tokenizer, mask = denoiser.tokenizer, denoiser.mask_token_id
        text = tokenizer.convert_ids_to_tokens(mask)
        if adapter.mask_token is not None:
            expect_equal(text, adapter.mask_token, "text of the mask token, and mask_token of the adapter")
        expect_equal(tokenizer(text, add_special_tokens=False)["input_ids"], [mask], f"ids of {text!r}")
        added = mask in tokenizer.added_tokens_decoder
        expect(added, f"{text!r} is a token of plain text; call add_special_tokens({{'mask_token': {text!r}}})")
        left = tokenizer.decode([mask], skip_special_tokens=True).strip()
        expect(not left, f"the mask decodes to {left!r} without special tokens; set it as the tokenizer's mask_token")
        names = ("eos", "bos", "pad", "unk", "sep", "cls")
        others = {name: getattr(tokenizer, f"{name}_token_id", None) for name in names}
        same = [name for name, token in others.items() if token == mask]
        expect(not same, f"the mask token, id {mask}, is also {', '.join(same)}; give it an id of its own")

    @requires("has_tokenizer")
    def test_turn_ends_are_known_tokens(self) -> None:
        """Each of ``eot_tokens`` is one id of the vocabulary and ends a completion; the mask does not.

        Why: a chat model may end its turns with another token than its end of sequence; where that is not known,
        samplers write the user's next question too (published code cuts at the end of sequence only).

        Mend: spell ``eot_tokens`` as in the tokenizer; give its special tokens to `prepare_tokenizer`.
        """
        denoiser = self.denoiser()
        vocabulary = denoiser.tokenizer.get_vocab()
        for text in self.adapter().eot_tokens:
            expect(text in vocabulary, f"the tokenizer does not know the end of turn {text!r}; spell it as it does")
            ids = denoiser.tokenizer(text, add_special_tokens=False)["input_ids"]
            expect_equal(ids, [vocabulary[text]], f"ids of the end of turn {text!r}")
            ends = vocabulary[text] in denoiser.end_token_ids
            expect(ends, f"{text!r}, id {vocabulary[text]}, is not among the ends {denoiser.end_token_ids}")
        masked = denoiser.mask_token_id in denoiser.end_token_ids
        expect(not masked, f"the mask token, id {denoiser.mask_token_id}, ends completions; take it out of eot_tokens")

    @requires("has_chat_template")
    def test_chat_prompt_is_where_an_answer_begins(self) -> None:
        """A chat with the generation prompt, followed by an answer, is how the chat with that answer begins.

        Why: without the assistant's header the model goes on with the user's text; one blank or line break more than in
        training is a prompt that it has never seen.

        Mend: write in ``add_generation_prompt`` exactly what stands between the user's turn and the answer's text.
        """
        denoiser = self.denoiser()
        prompt = _render(denoiser, CHAT, add_generation_prompt=True)
        whole = _render(denoiser, (*CHAT, {"role": "assistant", "content": ANSWER}))
        want = prompt + ANSWER
        told = f"prompt and answer are {want!r}, the chat with the answer is {whole!r}"
        expect(whole.startswith(want), f"{told}; mend add_generation_prompt in the chat template")

    @requires("has_chat_template")
    def test_chat_prompt_ids_begin_the_conversation(self) -> None:
        """The token ids of a chat prompt are the first ids of the chat with its answer.

        Why: supervised training finds the answer by the prompt's length; where the last prompt token merges with the
        first of the answer, the loss falls on other tokens than are generated.

        Mend: end the generation prompt with a special token or a line break that merges with nothing.
        """
        denoiser = self.denoiser()
        prompt, whole = self._prompt_and_whole(denoiser)
        same = sum(a == b for a, b in zip(prompt, whole, strict=False))
        told = f"of {len(prompt)} prompt ids {same} begin the conversation: {prompt} and {whole}"
        expect(whole[: len(prompt)] == prompt, f"{told}; mend the end of the generation prompt")

    @requires("has_chat_template")
    def test_chat_answers_end_with_an_end(self) -> None:
        """Right behind an answer's text stands a token that ends a completion, or a text that does.

        Why: what the model is trained to write at the end of its turn must be what completions are cut at.

        Mend: declare the template's end of turn in ``eot_tokens``, in ``eot_texts`` where it is several tokens, or
        make it the tokenizer's end of sequence.
        """
        denoiser = self.denoiser()
        prompt = _render(denoiser, CHAT, add_generation_prompt=True)
        whole = _render(denoiser, (*CHAT, {"role": "assistant", "content": ANSWER}))
        text = whole[len(prompt + ANSWER) :].strip()
        behind = denoiser.tokenizer(text, add_special_tokens=False)["input_ids"]
        ends = [*denoiser.tokenizer.convert_ids_to_tokens(list(denoiser.end_token_ids)), *self.adapter().eot_texts]
        told = f"behind an answer stands {whole[len(prompt + ANSWER) :]!r}, completions end with {ends}"
        is_end = text.startswith(self.adapter().eot_texts) or (behind and behind[0] in denoiser.end_token_ids)
        expect(is_end, f"{told}; declare it in eot_tokens or eot_texts")

    @requires("has_chat_template")
    def test_chat_holds_every_message_once(self) -> None:
        """A rendered chat holds every message once, in order, one beginning of sequence at most, and no mask.

        Why: a template that takes only the last message forgets the conversation; a tokenizer that adds a second
        beginning gives a prompt that no checkpoint was trained on; a mask would be filled by the sampler.

        Mend: loop over all messages; write the beginning of sequence in the template only.
        """
        denoiser = self.denoiser()
        text = _render(denoiser, CHAT, add_generation_prompt=True)
        position = 0
        for message in CHAT:
            content = message["content"]
            expect_equal(text.count(content), 1, f"how often the chat {text!r} holds {content!r}")
            found = text.find(content, position)
            expect(found >= 0, f"{content!r} is not in its place in {text!r}; keep the messages in order")
            position = found
        ids, _ = self._prompt_and_whole(denoiser)
        bos = denoiser.bos_token_id
        begins = 0 if bos in (None, *denoiser.end_token_ids) else ids.count(bos)
        expect(begins <= 1, f"the chat {ids} holds {begins} beginnings of sequence, id {bos}; write one")

    def _prompt_and_whole(self, denoiser: Denoiser) -> tuple[list[int], list[int]]:
        """Token ids of the chat as samplers see it, and of the chat with its answer."""
        whole = _render(denoiser, (*CHAT, {"role": "assistant", "content": ANSWER}))
        (prompt,) = encode(denoiser, [list(CHAT)])
        return prompt, denoiser.tokenizer(whole, add_special_tokens=False)["input_ids"]


def _render(denoiser: Denoiser, chat: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = False) -> str:
    return denoiser.tokenizer.apply_chat_template(
        list(chat), tokenize=False, add_generation_prompt=add_generation_prompt
    )


def _traits(tokenizer: object) -> dict[str, object]:
    return {
        "vocabulary": tokenizer.get_vocab(),
        "special tokens": tokenizer.special_tokens_map,
        "list of special ids": sorted(tokenizer.all_special_ids),
        "chat template": tokenizer.chat_template,
    }
