"""Cut responses while fine-tuning, so that a model does not learn to end where the longest one of a batch does."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dllm_core.config import within
from dllm_core.errors import OptionError
from dllm_core.training import CollatorWrapper
from dllm_core.training.wrappers import Collator, Example, batch_generator, cut, first_learned


class ResponseCutoffWrapper(CollatorWrapper):
    """Cuts the responses of a batch to the length of one of them, drawn by chance; or some batches by a random tail.

    The rest of a batch is padding; where that is learned, as in LLaDA and Dream, long responses beside short ones teach
    to end early. A response begins with the first token to learn; one without a token is never what the others are cut
    to. What is drawn follows from the tokens of the batch and the seed: a resumed training draws what the unbroken one
    would have.

    Args:
        perbatch_cutoff: cut the responses of each batch to the length of one of them.
        resp_cutoff_ratio: without `perbatch_cutoff`: share of the batches that lose a tail, which is shorter than the
            shortest response.
        seed: of the draws.

    Raises:
        OptionError: a share outside 0 to 1, or both ways at once.

    Source: DreamLM/Dream, src/trainer/fsdp_sft_trainer.py; ZHZisZZ/dllm at ca17675, dllm/pipelines/dream/utils.py,
    DreamSFTCollator.
    """

    def __init__(
        self, collator: Collator, perbatch_cutoff: bool = True, resp_cutoff_ratio: float = 0.0, seed: int = 0
    ) -> None:
        super().__init__(collator)
        within("resp_cutoff_ratio", resp_cutoff_ratio, 0.0, 1.0)
        if perbatch_cutoff and resp_cutoff_ratio:
            raise OptionError("resp_cutoff_ratio is for perbatch_cutoff=false; leave one of them out")
        self.perbatch_cutoff = perbatch_cutoff
        self.resp_cutoff_ratio = resp_cutoff_ratio
        self.seed = seed

    def before(self, examples: Sequence[Example]) -> Sequence[Example]:
        """The examples with shorter responses; prompts are whole."""
        generator = batch_generator(self.seed, examples)
        if self.perbatch_cutoff:
            return _cut_to_one_of_them(examples, generator)
        if torch.rand((), generator=generator).item() < self.resp_cutoff_ratio:
            return _without_a_tail(examples, generator)
        return examples


def _cut_to_one_of_them(examples: Sequence[Example], generator: torch.Generator) -> Sequence[Example]:
    lengths = [length for length in map(_response_length, examples) if length > 0]
    if not lengths:
        return examples
    kept = lengths[int(torch.randint(len(lengths), (), generator=generator))]
    return [cut(example, first_learned(example) + kept) for example in examples]


def _without_a_tail(examples: Sequence[Example], generator: torch.Generator) -> Sequence[Example]:
    shortest = min(map(_response_length, examples))
    if shortest <= 1:
        return examples
    tail = int(torch.randint(1, shortest, (), generator=generator))
    length = max(len(example["input_ids"]) for example in examples) - tail
    return [cut(example, length) for example in examples]


def _response_length(example: Example) -> int:
    return len(example["input_ids"]) - first_learned(example)
