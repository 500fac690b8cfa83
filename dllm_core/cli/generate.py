"""Generate for `dllm run`: load, turn requests into token ids, run them in batches, perhaps before people's eyes."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import huggingface_hub.utils
import transformers.utils.logging
from rich.console import Console

from dllm_core import registry
from dllm_core.cli.blanks import span_of, stretches
from dllm_core.cli.output import Result
from dllm_core.cli.prompts import Request, expand_blanks, with_blanks_filled
from dllm_core.errors import PromptError
from dllm_core.models import load
from dllm_core.models.loading import read_config, resolve_path
from dllm_core.samplers import sampler as make_sampler
from dllm_core.samplers.output import cut_at_end
from dllm_core.samplers.parts import build, in_force, with_preset
from dllm_core.samplers.prompts import encode, encode_canvases

if TYPE_CHECKING:
    from dllm_core.display.live import LiveView
    from dllm_core.display.recorder import TraceRecorder
    from dllm_core.models.denoiser import Denoiser
    from dllm_core.samplers.base import Sampler
    from dllm_core.samplers.output import SampleOutput
    from dllm_core.samplers.state import SamplerState

DEMO_SECONDS = 6.0  # that a demonstration is slowed down by, over all its prompts


@dataclass(frozen=True)
class Prepared:
    """A request and its token ids; those of a text with blanks hold mask tokens."""

    request: Request
    ids: list[int]


@dataclass
class Generation:
    """A model, a sampler and the requests for it."""

    model: str
    sampler_name: str
    sampler: Sampler
    prepared: list[Prepared] = field(default_factory=list)

    @classmethod
    def load(
        cls, model: str, sampler_name: str, options: Mapping[str, object], *, device: str, dtype: str
    ) -> Generation:
        """Check the sampler's options, then load the model, which takes longer.

        Raises:
            OptionError: an option is unknown or out of range.
            ModelLoadError: there is no such model, or it cannot be loaded.
        """
        defaults = registry.find("sampler", sampler_name).spec.defaults
        options_class = registry.load("sampler", sampler_name).options_class
        build(options_class, with_preset(options_class, defaults, options))
        denoiser = load(model, device=device, dtype=dtype)
        return cls(model, sampler_name, make_sampler(sampler_name, denoiser, **options))

    @property
    def denoiser(self) -> Denoiser:
        return self.sampler.denoiser

    @property
    def about(self) -> dict[str, object]:
        """Model, sampler, seed, and every option in force, those of the commit rule and the cache policy included."""
        options = in_force(self.sampler)
        return {"model": self.model, "sampler": self.sampler_name, "seed": options["seed"], "options": options}

    def prepare(self, requests: Sequence[Request], *, chat: bool | None, system: str | None) -> None:
        """Turn all requests into token ids and check each, before any is generated.

        Args:
            chat: whether texts go through the chat template; None: where the tokenizer has one.
            system: the system message of each chat.

        Raises:
            PromptError: names the request.
        """
        tokenizer = self.denoiser.tokenizer
        if chat is None:
            chat = system is not None or (tokenizer is not None and tokenizer.chat_template is not None)
        for request in requests:
            try:
                self.prepared.append(Prepared(request, self._encode(request, chat, system)))
                self._start(self.prepared[-1:])
            except PromptError as error:
                raise PromptError(_located(str(error), request.where)) from error

    def recorder(self) -> TraceRecorder:
        """What records the runs of this generation."""
        from dllm_core.display.recorder import TraceRecorder
        from dllm_core.display.run_view import special_ids, token_text

        denoiser = self.denoiser
        return TraceRecorder(
            token_text(denoiser),
            mask_id=denoiser.mask_token_id,
            special_ids=special_ids(denoiser),
            end_ids=denoiser.end_token_ids,
        )

    def run(
        self, batch_size: int, *, live: bool, slowly: bool, recorder: TraceRecorder | None = None
    ) -> Iterator[list[Result]]:
        """Generate, batch after batch.

        Args:
            batch_size: how many requests at most are generated together.
            live: draw the canvas on the terminal meanwhile.
            slowly: a demonstration: slow enough to watch, one prompt at a time where it is watched.
            recorder: records every step.
        """
        groups = batches(self.prepared, 1 if live and slowly else batch_size)
        for group in groups:
            state = self._start(group)
            if recorder is not None:
                recorder.begin(state, _captions(group), self.denoiser.pad_token_id)
            seconds = DEMO_SECONDS / len(self.prepared) if slowly else 0.0
            taken = 0
            with self._view(state, group, seconds) if live else self._bar(state, group) as view:
                while not state.finished:
                    step = self.sampler.step(state)
                    taken += 1
                    if live:
                        view.show(step)
                    else:
                        view(taken)
                    if recorder is not None:
                        recorder.show(step)
            output = self.sampler.finish(state)
            if recorder is not None:
                recorder.end(output)
            yield self._results(group, output)

    def _encode(self, request: Request, chat: bool, system: str | None) -> list[int]:
        if request.kind == "infill":
            mask_token = self.denoiser.tokenizer.convert_ids_to_tokens(self.denoiser.mask_token_id)
            return encode_canvases(self.denoiser, [expand_blanks(request.content, mask_token, request.where)])[0]
        if request.kind == "messages":
            return encode(self.denoiser, [list(request.content)])[0]
        messages = [{"role": "system", "content": system}] if system is not None else []
        messages.append({"role": "user", "content": request.content})
        return encode(self.denoiser, [messages if chat else request.content])[0]

    def _start(self, group: Sequence[Prepared]) -> SamplerState:
        ids = [one.ids for one in group]
        return self.sampler.start_infill(ids) if group[0].request.kind == "infill" else self.sampler.start(ids)

    def _view(self, state: SamplerState, group: Sequence[Prepared], seconds: float) -> LiveView:
        from dllm_core.display.run_view import view_of_run

        return view_of_run(Console(stderr=True), self.sampler, state, _captions(group), seconds=seconds)

    def _bar(self, state: SamplerState, group: Sequence[Prepared]) -> AbstractContextManager[Callable[[int], None]]:
        from dllm_core.display.progress import progress_bar
        from dllm_core.display.run_view import steps_ahead

        total = steps_ahead(self.sampler, state) if hasattr(state, "block") else None  # samplers that edit have none
        return progress_bar(self._title(group), total)

    def _title(self, group: Sequence[Prepared]) -> str:
        if len(group) == len(self.prepared):
            return "Generating"
        first = self.prepared.index(group[0])
        return f"Generating {first + 1} to {first + len(group)} of {len(self.prepared)}"

    def _results(self, group: Sequence[Prepared], output: SampleOutput) -> list[Result]:
        mask, ends = self.denoiser.mask_token_id, self.denoiser.end_token_ids
        spans = zip(output.sequences.tolist(), output.prompt_lengths.tolist(), output.lengths.tolist(), strict=True)
        completions = [row[start:stop] for row, start, stop in spans]
        results = []
        for one, text, completion in zip(group, output.texts, completions, strict=True):
            blanks = one.ids.count(mask)
            text = self._filled(one, completion) if _is_infill(one) else text
            given = len(one.ids) - blanks
            made = len(completion) - given if blanks else len(cut_at_end(completion, ends))
            results.append(Result(one.request, text, given, made, output.stats, len(group)))
        return results

    def _filled(self, one: Prepared, ids: Sequence[int]) -> str:
        """The text of a request with its blanks filled by the tokens that now stand there."""
        from dllm_core.display.run_view import special_ids, token_text

        tokens, hidden, mask = token_text(self.denoiser), special_ids(self.denoiser), self.denoiser.mask_token_id
        places = (place for place, token in enumerate(one.ids) if token == mask)
        found = stretches(one.ids, ids, mask)

        def fill(length: int) -> str:
            own = [next(places) for _ in range(length)]
            start, stop = span_of(found, own[0], own[-1] + 1)
            before = tuple(ids[max(start - 1, 0) : start])
            return tokens.text_after(before, tuple(token for token in ids[start:stop] if token not in hidden))

        return with_blanks_filled(one.request.content, self.denoiser.tokenizer.convert_ids_to_tokens(mask), fill)


def family_sampler(model: str) -> str | None:
    """The full id of the first sampler that was made for the family of a model; None where there is none.

    Raises:
        ModelLoadError: there is no such model.
    """
    family = registry.adapter_for_model_type(str(read_config(resolve_path(model), None).get("model_type")))
    made_for_it = (
        component.full_id
        for component in registry.components("sampler")
        if family is not None and component.plugin == family.plugin and family.name in component.spec.families
    )
    return next(made_for_it, None)


def quieten(*, bars: bool) -> None:
    """Keep Hugging Face from writing to stderr what the user is told otherwise.

    Args:
        bars: hide the progress bars of loading as well.
    """
    # It warns of prompts that are too long; those are an error here, which says what to do.
    logging.getLogger("transformers.tokenization_utils_base").setLevel(logging.ERROR)
    if bars:
        huggingface_hub.utils.disable_progress_bars()
        transformers.utils.logging.disable_progress_bar()


def batches(prepared: Sequence[Prepared], size: int) -> Iterator[list[Prepared]]:
    """Neighbours in groups of at most `size`; texts with blanks apart, as they take another call."""
    group: list[Prepared] = []
    for one in prepared:
        if group and (len(group) == size or _is_infill(group[0]) != _is_infill(one)):
            yield group
            group = []
        group.append(one)
    if group:
        yield group


def _captions(group: Sequence[Prepared]) -> list[str]:
    """What stands above each row; a text with blanks is its own caption: all of it is on the canvas."""
    return ["" if _is_infill(one) else one.request.caption for one in group]


def _is_infill(one: Prepared) -> bool:
    return one.request.kind == "infill"


def _located(message: str, where: str) -> str:
    """The sampler speaks of prompt 0, as it gets one at a time; say instead where the prompt came from."""
    named = re.sub(r"^(prompt|canvas) 0 ", f"{where} ", message)
    return named if named.startswith(where) or where == "the prompt" else f"{where}: {named}"
