"""A conversation with a diffusion language model: what was said, and how each answer is made and shown."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from dllm_core import registry
from dllm_core.cli.prompts import expand_blanks
from dllm_core.config import parse_assignments
from dllm_core.display.text import harmless
from dllm_core.errors import OptionError, PromptError
from dllm_core.samplers import sampler as make_sampler
from dllm_core.samplers.output import completion_text, cut_at_end
from dllm_core.samplers.prompts import encode_canvases

if TYPE_CHECKING:
    from dllm_core.samplers.base import Sampler
    from dllm_core.samplers.output import Step
    from dllm_core.samplers.state import SamplerState


@dataclass
class Conversation:
    """What was said so far, and the sampler that answers.

    Args:
        sampler: makes the answers.
        sampler_name: its full id.
        options: those that were chosen for it; `use` makes it anew with others.
        system: the system message, if any.
        live: whether the canvas is drawn on the terminal while an answer is made.
        turns: user and assistant in turn.
    """

    sampler: Sampler
    sampler_name: str
    options: dict[str, object]
    system: str | None = None
    live: bool = False
    turns: list[dict[str, str]] = field(default_factory=list)

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation as chat messages."""
        return [{"role": "system", "content": self.system}] * (self.system is not None) + self.turns

    def say(self, text: str) -> Iterator[str]:
        """Answer; the parts of the answer as they are settled. Only a finished answer becomes part of the conversation.

        Raises:
            PromptError: the conversation is too long for the model.
        """
        asked = {"role": "user", "content": text}
        answer = ""
        for part in self._run(self._start([*self.messages, asked]), text):
            answer += part
            yield part
        self.turns += [asked, {"role": "assistant", "content": answer}]

    def _start(self, messages: list[dict[str, str]]) -> SamplerState:
        try:
            return self.sampler.start([messages])
        except PromptError as error:
            said = str(error).replace("prompt 0 ", "the conversation ")
            raise PromptError(f"{said}; /reset forgets it, /set max_new_tokens N makes answers shorter") from error

    def infill(self, text: str) -> Iterator[str]:
        """Fill the blanks of a text, outside the conversation.

        Raises:
            PromptError: it has none.
        """
        denoiser = self.sampler.denoiser
        mask = denoiser.tokenizer.convert_ids_to_tokens(denoiser.mask_token_id)
        canvas = encode_canvases(denoiser, [expand_blanks(text, mask, "the text")])
        yield from self._run(self.sampler.start_infill(canvas), "")

    def use(self, sampler_name: str, options: dict[str, object]) -> None:
        """Answer with another sampler or other options from now on; nothing changes where they do not fit.

        Raises:
            OptionError: an option is unknown or out of range.
            UnknownComponentError: there is no such sampler.
        """
        full_id = registry.find("sampler", sampler_name).full_id
        self.sampler = make_sampler(full_id, self.sampler.denoiser, **options)
        self.sampler_name, self.options = full_id, options

    def save(self, path: Path) -> None:
        """Append the conversation to a file, as a line that ``dllm run --prompts-file`` reads.

        Raises:
            OptionError: the file cannot be written.
        """
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"messages": self.messages}, ensure_ascii=False) + "\n")
        except OSError as error:
            raise OptionError(f"/save {path}: {error.strerror}; give a file in a folder that exists") from error

    def _run(self, state: SamplerState, caption: str) -> Iterator[str]:
        said = ""
        if self.live:
            from dllm_core.display.run_view import view_of_run

            with view_of_run(Console(stderr=True), self.sampler, state, [caption]) as view:
                while not state.finished:
                    view.show(self.sampler.step(state))
        has_blocks = hasattr(state, "block")  # the answers of samplers that edit are settled all at once
        while not state.finished:
            number = state.block.number if has_blocks else None
            step = self.sampler.step(state)
            if has_blocks and state.canvas.completes and (state.block is None or state.block.number != number):
                settled = self._settled(state, step)
                if settled.startswith(said):
                    yield settled[len(said) :]
                    said = settled
        text = self.sampler.finish(state).texts[0]
        # A tokenizer may write the end of a part in another way once more follows; then the rest comes on a new line.
        yield text[len(said) :] if text.startswith(said) else f"\n{text}"

    def _settled(self, state: SamplerState, step: Step) -> str:
        """The text in front of the first mask."""
        denoiser = self.sampler.denoiser
        ids = step.input_ids[0, state.canvas.prompt_lengths[0] : state.canvas.shown[0]].tolist()
        ids = cut_at_end(ids, (*denoiser.end_token_ids, denoiser.mask_token_id))
        text = completion_text(ids, denoiser.tokenizer, denoiser.adapter.eot_texts)
        return text.rstrip("\N{REPLACEMENT CHARACTER}").rstrip()


HELP = """\
/reset            forget the conversation
/sampler [NAME]   show the sampler, or answer with another one
/set KEY VALUE    set a sampler option, for example /set steps 16
/save FILE        append the conversation to a file
/infill TEXT      fill the blanks of a text, for example /infill 12+[MASK:2]=57
/help             this list
/quit             leave (or Ctrl-D); Ctrl-C stops an answer"""


COMMANDS = tuple(line.split()[0] for line in HELP.splitlines() if line.startswith("/"))


def obey(conversation: Conversation, line: str) -> Iterator[str]:
    """Carry out a slash command; the parts of what it says.

    Raises:
        DllmError: what is wrong with it.
    """
    name, _, rest = line.partition(" ")
    rest = rest.strip()
    if name == "/help":
        yield HELP
    elif name == "/reset":
        conversation.turns.clear()
        yield "The conversation starts anew."
    elif name == "/sampler":
        if rest:
            conversation.use(rest, conversation.options)
        chosen = ", ".join(f"{key}={value}" for key, value in conversation.options.items())
        yield f"{conversation.sampler_name}  {chosen}".rstrip()
    elif name == "/set":
        key, _, value = rest.partition(" ")
        if not value.strip():
            raise OptionError("/set takes a key and a value, for example /set steps 16")
        conversation.use(
            conversation.sampler_name, conversation.options | parse_assignments([f"{key}={value.strip()}"])
        )
        yield f"{key} = {conversation.options[key]}"
    elif name == "/save":
        if not rest:
            raise OptionError("/save takes a file, for example /save chat.jsonl")
        conversation.save(Path(rest))
        yield f"saved to {rest}"
    elif name == "/infill":
        yield from conversation.infill(rest)
    else:
        raise PromptError(f"no command {name!r}; /help lists them")


def show(parts: Iterator[str]) -> None:
    """Print parts as they come, and end the line."""
    for part in parts:
        sys.stdout.write(harmless(part, sys.stdout))
        sys.stdout.flush()
    sys.stdout.write("\n")
    sys.stdout.flush()
