"""One lm-eval model for every family and sampler: lm-eval asks, a sampler writes, Monte Carlo scores.

Batches are laid out from all requests of a call, the longest prompts first, before anything is left out that is already
answered. So an answer does not depend on how often a run was interrupted, nor on the number of processes.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Protocol

from lm_eval.api.model import LM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from rich.console import Console
from rich.progress import track

from dllm_core import registry, samplers
from dllm_core.config import at_least, from_mapping, one_of
from dllm_core.errors import OptionError, PromptError
from dllm_core.evaluation.estimates import LikelihoodOptions, estimate, number_of_copies, piece_lengths
from dllm_core.evaluation.journal import Batch, Journal, fingerprint, request_key
from dllm_core.evaluation.likelihood import are_greedy
from dllm_core.evaluation.processes import gathered, own_share, rank_and_size
from dllm_core.evaluation.settings import OF_LIKELIHOOD, Generation, generation_from
from dllm_core.evaluation.texts import cut_at_stops, encode_pair, encode_prompt, fit_prefix
from dllm_core.models.loading import load
from dllm_core.samplers import parts
from dllm_core.samplers.view import BLOCK_CAUSAL

if TYPE_CHECKING:
    from pathlib import Path

    from lm_eval.api.instance import Instance

    from dllm_core.models import Denoiser
    from dllm_core.samplers.base import Sampler
    from dllm_core.samplers.output import SampleOutput, Step
    from dllm_core.samplers.state import SamplerState

DEFAULT_NEW_TOKENS = 256  # lm-eval's own, where neither the run nor the task says one
DEFAULT_BLOCK_SIZE = 32


@dataclass(frozen=True)
class Request:
    """What the model is asked, in token ids.

    Args:
        key: its name in the journal.
        prefix: the prompt, or the canvas with masks.
        target: what is scored; empty where text is generated.
        seed: of its noise.
        generation: how text is generated, None where a likelihood is asked for.
    """

    key: str
    prefix: tuple[int, ...]
    target: tuple[int, ...]
    seed: int
    generation: Generation | None = None


class Watcher(Protocol):
    """Who is shown the steps of a run, as `dllm_core.display.recorder.TraceRecorder` is."""

    def begin(self, state: SamplerState, captions: Sequence[str], pad_id: int) -> None: ...

    def show(self, step: Step) -> None: ...

    def end(self, output: SampleOutput) -> None: ...


class DiffusionLM(LM):
    """A diffusion language model for lm-eval.

    Args:
        pretrained: hub id, folder or bundled checkpoint, as `dllm.load` takes it.
        denoiser: a loaded model instead.
        sampler: name of the sampler that writes.
        batch_size: prompts that are generated together.
        device, dtype: as of `dllm.load`; ignored with ``denoiser``.
        seed: of all noise.
        mc_num, levels, mc_batch_size, end_in_view: of likelihoods, see `LikelihoodOptions`.
        likelihood: ``masked``: one target under full attention; ``block``: the product over blocks of ``block_size``
            (32 where no option says it) under block-causal attention; None: what the sampler's attention is.
        add_bos: put the beginning-of-sequence token in front of prompts; None: what the tokenizer does.
        journal: where finished requests are kept.
        max_batch_size: lm-eval passes it; there is no automatic batch size, so it must be None.
        options: of the sampler; ``guidance_scale`` is the likelihood's too.

    Attributes:
        settings: what is in force, by ``sampler``, ``options`` and ``likelihood``; tasks may set more (`Generation`).

    Raises:
        OptionError: an unknown option or a value out of range.
        PromptError: the model has no tokenizer.
    """

    def __init__(
        self,
        pretrained: str | Path | None = None,
        *,
        denoiser: Denoiser | None = None,
        sampler: str = "mdlm",
        batch_size: int | str = 8,
        device: str = "auto",
        dtype: str = "auto",
        seed: int = 0,
        mc_num: int = 128,
        levels: str = "stratified",
        mc_batch_size: int = 32,
        end_in_view: bool = False,
        likelihood: str | None = None,
        add_bos: bool | None = None,
        journal: Journal | None = None,
        max_batch_size: int | None = None,
        **options: object,
    ) -> None:
        super().__init__()
        if (pretrained is None) == (denoiser is None):
            raise OptionError("give the model once: pretrained=NAME or a denoiser")
        if max_batch_size is not None:
            raise OptionError(f"max_batch_size={max_batch_size} is for automatic batch sizes; give batch_size=8")
        self.denoiser = load(pretrained, device=device, dtype=dtype) if denoiser is None else denoiser
        if self.denoiser.tokenizer is None:
            raise PromptError("evaluation needs a tokenizer; load the model with one")
        self.batch_size = _whole("batch_size", batch_size)
        self.seed, self.add_bos = seed, add_bos
        self.journal = journal or Journal(process=rank_and_size()[0])
        self.asked: list[str] = []
        self._model = fingerprint(self.denoiser)
        given = dict(zip(OF_LIKELIHOOD, (mc_num, levels, mc_batch_size, end_in_view), strict=True))
        self.configure(sampler, {**given, **options}, likelihood=likelihood)

    def configure(self, sampler: str, options: Mapping[str, object], *, likelihood: str | None = None) -> None:
        """Take other settings for the requests that follow; arguments as of the class.

        Raises:
            OptionError: an unknown option or a value out of range.
        """
        self.sampler = sampler
        self.options = {name: value for name, value in options.items() if name not in OF_LIKELIHOOD}
        one_of("likelihood", likelihood, (None, "masked", "block"))
        made = samplers.sampler(sampler, self.denoiser, **self.options)
        self.edits = registry.find("sampler", sampler).spec.edits
        by_block = made.attention == BLOCK_CAUSAL if likelihood is None else likelihood == "block"
        own = {name: options[name] for name in ("mc_num", "levels", "end_in_view") if name in options}
        rest = {
            "batch_size": options.get("mc_batch_size", 32),
            "guidance_scale": made.options.guidance_scale,
            "block_size": (made.options.block_size or DEFAULT_BLOCK_SIZE) if by_block else None,
            "seed": self.seed,
        }
        self.likelihood = from_mapping(LikelihoodOptions, own | rest, what="likelihood")
        self.settings = {"sampler": sampler, "options": parts.in_force(made), "likelihood": asdict(self.likelihood)}

    @property
    def tokenizer_name(self) -> str:
        return self.denoiser.tokenizer.name_or_path.replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        return self.denoiser.tokenizer.chat_template if chat_template else ""

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The prompt of a chat, as text.

        Raises:
            PromptError: the model has no chat template.
        """
        tokenizer = self.denoiser.tokenizer
        if tokenizer.chat_template is None:
            raise PromptError("this model has no chat template; evaluate it without (--raw)")
        return tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """The completion of each prompt, up to its stop strings; a prompt that holds mask tokens is filled instead.

        A sampler whose spec says that it edits takes the prompt for a draft, and the answer is what becomes of it.

        Raises:
            OptionError: a task sets what the sampler does not know.
        """
        seen: Counter[str] = Counter()
        work = []
        for request in requests:
            text, how = request.args[0], generation_from(self.sampler, self.options, request.args[1])
            plain = self._key("generate", self.sampler, text, asdict(how))
            work.append(self._generation_request(plain, seen[plain], text, how))
            seen[plain] += 1
        return [str(answer) for answer in self._answer(work, self._generate, "Generating")]

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """(estimated log p(continuation | context), whether greedy decoding writes it), in nats."""
        pairs = [encode_pair(self.denoiser, *request.args, add_bos=self.add_bos) for request in requests]
        more = int(self.likelihood.end_in_view)
        answers = self._likelihoods([(fit_prefix(self.denoiser, p, len(t) + more), t) for p, t in pairs], "Scoring")
        return [(value, bool(greedy)) for value, greedy, _ in answers]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """The estimated log-likelihood of each text, in windows of the model's context that do not overlap."""
        windows = [self._windows(request.args[0]) for request in requests]
        answers = iter(self._likelihoods([window for own in windows for window in own], "Scoring texts"))
        return [sum(next(answers)[0] for _ in own) for own in windows]

    def standard_errors(self, keys: Sequence[str]) -> list[float]:
        """Of the likelihoods among the requests of these keys."""
        answers = [self.journal.answer(key) for key in keys]
        return [answer[2] for answer in answers if not isinstance(answer, str)]

    def retrace(self, asked: Sequence[tuple[str, Mapping[str, object]]], watcher: Watcher) -> list[str]:
        """Generate the answers to some prompts again, one after the other, with every step shown to `watcher`.

        They are the answers that `generate_until` gave: a row does not depend on what shares its batch.

        Args:
            asked: a prompt and the task's ``generation_kwargs``, as lm-eval logs them.
        """
        texts = []
        for text, task in asked:
            how = generation_from(self.sampler, self.options, task)
            request = self._generation_request("", 0, text, how)
            options = {**request.generation.options, "seed": [request.seed]}
            sampler = samplers.sampler(self.sampler, self.denoiser, **options)
            state = self._begun(sampler, [request])
            watcher.begin(state, [text], self.denoiser.pad_token_id)
            while not state.finished:
                watcher.show(sampler.step(state))
            output = sampler.finish(state)
            watcher.end(output)
            texts.append(cut_at_stops(output.texts[0], how.stops))
        return texts

    def _windows(self, text: str) -> list[tuple[list[int], list[int]]]:
        tokens = encode_prompt(self.denoiser, text, add_bos=False)
        context = self.denoiser.context_length
        room = context and context - 1 - self.likelihood.end_in_view
        prefix = encode_prompt(self.denoiser, "", add_bos=self.add_bos) or [None]
        rolling = get_rolling_token_windows(tokens, prefix[0], room or max(1, len(tokens)), 1)
        # A model without a token for the beginning of a text starts from nothing.
        return [([t for t in p if t is not None], list(t)) for p, t in map(make_disjoint_window, rolling)]

    def _likelihoods(
        self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], what: str
    ) -> list[tuple[float, bool, float]]:
        work = [
            Request(self._key("likelihood", p, t, asdict(self.likelihood)), tuple(p), tuple(t), self.seed)
            for p, t in pairs
        ]
        return self._answer(work, self._score, what)

    def _key(self, *content: object) -> str:
        return request_key(self._model, self.add_bos, self.seed, *content)

    def _generation_request(self, plain: str, repeat: int, text: str, how: Generation) -> Request:
        """One request; where the same is asked again, ``repeat`` gives it noise of its own."""
        key, seed = f"{plain}/{repeat}", self.seed + (repeat << 32)
        ids = encode_prompt(self.denoiser, text, add_bos=self.add_bos)
        if self.denoiser.mask_token_id in ids:
            return Request(key, tuple(ids), (), seed, how)
        options = how.options
        if self.edits:
            own = {name: value for name, value in options.items() if name not in ("max_new_tokens", "max_length")}
            return Request(key, tuple(ids), (), seed, replace(how, options=own))
        if not {"max_new_tokens", "max_length"} & set(options):
            how = replace(how, options={**options, "max_new_tokens": DEFAULT_NEW_TOKENS})
        room = how.options.get("max_new_tokens") or 1
        return Request(key, tuple(fit_prefix(self.denoiser, ids, room)), (), seed, how)

    def _answer(self, work: Sequence[Request], compute: Callable[[Sequence[Request]], Batch], what: str) -> list:
        """The answer to each request, computed where the journal has none."""
        self.asked += [request.key for request in work]
        layout = [[one for one in batch if one.key not in self.journal] for batch in self._batches(work)]
        left = own_share([batch for batch in layout if batch])
        aside, made = Console(stderr=True), []
        for batch in track(left, description=what, console=aside, disable=not aside.is_terminal):
            made.append(compute(batch))
            self.journal.write(made[-1])
        for batch in gathered(made):
            self.journal.learn(batch)
        return [self.journal.answer(request.key) for request in work]

    def _batches(self, work: Sequence[Request]) -> list[list[Request]]:
        """Different requests of one kind and like lengths together, the longest first: what does not fit shows soon."""
        kinds: dict[str, list[Request]] = {}
        for request in {one.key: one for one in work}.values():
            kind = request_key(request.generation and request.generation.options, self._has_masks(request))
            kinds.setdefault(kind, []).append(request)
        batches = []
        for kind in kinds.values():
            ordered = sorted(kind, key=lambda one: (_length(one), one.prefix), reverse=True)
            generates = ordered[0].generation is not None
            size = self.batch_size if generates else self.likelihood.batch_size
            batches += packed(ordered, [1 if generates else each for each in self._rows(ordered)], size)
        return batches

    def _rows(self, ordered: Sequence[Request]) -> list[int]:
        """How many canvases each likelihood adds to those in front of it: choices of one token share theirs."""
        shared = [
            len(one.target) == len(before.target) == 1 and one.prefix == before.prefix
            for before, one in itertools.pairwise(ordered)
        ]
        how = self.likelihood
        return [
            0 if is_shared else sum(
                number_of_copies(length, how.mc_num)
                for length in piece_lengths(len(one.prefix), len(one.target), how.block_size)
            )
            for one, is_shared in zip(ordered, [False, *shared], strict=True)
        ]  # fmt: skip

    def _has_masks(self, request: Request) -> bool:
        return self.denoiser.mask_token_id in request.prefix

    def _generate(self, batch: Sequence[Request]) -> Batch:
        options = {**batch[0].generation.options, "seed": [request.seed for request in batch]}
        sampler = samplers.sampler(self.sampler, self.denoiser, **options)
        state = self._begun(sampler, batch)
        while not state.finished:
            sampler.step(state)
        output = sampler.finish(state)
        texts = [cut_at_stops(t, r.generation.stops) for t, r in zip(output.texts, batch, strict=True)]
        answers = {request.key: text for request, text in zip(batch, texts, strict=True)}
        return Batch(answers, output.stats.forward_passes, output.stats.tokens, output.stats.seconds)

    def _begun(self, sampler: Sampler, batch: Sequence[Request]) -> SamplerState:
        prompts = [list(request.prefix) for request in batch]
        if self.edits:
            return sampler.start_edit(prompts)
        return sampler.start_infill(prompts) if self._has_masks(batch[0]) else sampler.start(prompts)

    def _score(self, batch: Sequence[Request]) -> Batch:
        started = time.perf_counter()
        with counted_calls(self.denoiser) as calls:
            estimates = estimate(self.denoiser, [(r.prefix, r.target) for r in batch], self.likelihood)
            greedy = self._are_greedy(batch)
        answers = {
            request.key: [each.value, is_best, each.standard_error]
            for request, each, is_best in zip(batch, estimates, greedy, strict=True)
        }
        return Batch(answers, calls["forward"], 0, time.perf_counter() - started)

    def _are_greedy(self, batch: Sequence[Request]) -> list[bool]:
        how = self.likelihood
        texts = [(request.prefix, request.target) for request in batch]
        return are_greedy(self.denoiser, texts, guidance_scale=how.guidance_scale, block_size=how.block_size)


@contextmanager
def counted_calls(denoiser: Denoiser) -> Iterator[Counter[str]]:
    """Counts the calls of the model inside the ``with`` block, under ``"forward"``."""
    calls: Counter[str] = Counter()
    hook = denoiser.model.register_forward_pre_hook(lambda *_: calls.update(["forward"]))
    try:
        yield calls
    finally:
        hook.remove()


def packed(ordered: Sequence[Request], rows: Sequence[int], size: int) -> list[list[Request]]:
    """Batches of requests in their order, none of more than `size` rows unless one request alone has more."""
    batches: list[list[Request]] = []
    room = -1
    for request, need in zip(ordered, rows, strict=True):
        if need > room:
            batches.append([])
            room = size
        batches[-1].append(request)
        room -= need
    return batches


def _length(request: Request) -> int:
    return len(request.prefix) + len(request.target)


def _whole(name: str, value: int | str) -> int:
    if not str(value).isdecimal():
        raise OptionError(f"{name} must be a whole number, got {value!r}; there is no automatic batch size")
    at_least(name, int(value), 1)
    return int(value)
