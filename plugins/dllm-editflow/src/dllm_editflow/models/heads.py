"""`EditFlowModel`: the heads that edits are read from, beside any family's own vocabulary head.

Nothing here knows a family. What the heads read is what the family's vocabulary head is about to read, taken by a hook
on that head: final norms and prediction transforms, wherever a family has them, are behind it. The time comes in by a
hook on the input embedding. Both hooks live only while the model's own forward runs, which is called exactly once: DDP,
FSDP, ZeRO and PEFT wrap that forward.

Shapes: B batch, L length, H what the vocabulary head reads, V vocabulary.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from transformers import initialization as init

from dllm_editflow.kinds import INSERT
from dllm_editflow.models.options import HeadOptions
from dllm_editflow.models.rates import prior_scores, rates_from
from dllm_editflow.models.time import TimeEmbedding

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class EditStates:
    """What one pass of the model says about the edits of a batch. Nothing of size V is made yet.

    Args:
        rates: (B, L, 3) float32, at least 0: r-hat of substituting token i, deleting it, inserting behind it; without
            the factor w(t).
        substitute_hidden: (B, L, H), what `substitute` projects to score the token that replaces token i; a right
            shift is undone.
        insert_hidden: (B, L, H), what `insert` projects to score the token put behind token i.
        substitute: (..., H) -> (..., V).
        insert: (..., H) -> (..., V); the same module object where the projection is shared.
    """

    rates: Tensor
    substitute_hidden: Tensor
    insert_hidden: Tensor
    substitute: nn.Module
    insert: nn.Module


class EditFlowModel:
    """Mixed in before a family's language model: ``class EditFlowX(EditFlowModel, X)``.

    Without ``edits`` the model is the source in all it does, ``time`` aside.

    Attributes:
        is_shifted: row i of the family's logits scores token i + 1, where config.json does not say.
        published_norm: name of the final norm that the published heads leave out, see `HeadOptions`.
        edit_options: how the heads are built and read.

    Source: the names of the heads' weights are those of ZHZisZZ/dllm at ca17675, dllm/pipelines/editflow/models.
    """

    is_shifted: ClassVar[bool] = False
    published_norm: ClassVar[str | None] = None
    edit_options: HeadOptions

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        options = self.edit_options = HeadOptions.of(config)
        own = self.get_output_embeddings()
        width, vocabulary, bias = own.in_features, own.out_features, own.bias is not None
        if options.edit_vocabulary == "separate":
            self.sub_logits = nn.Linear(width, vocabulary, bias=bias)
            self.ins_logits = nn.Linear(width, vocabulary, bias=bias)
        else:
            self.insert_mix = _starting_at_zero(nn.Linear(width, width, bias=False))
        rate_head = _starting_at_zero(nn.Linear(width, len(prior_scores(options.edit_rate_form))))
        rate_head.edit_bias = prior_scores(options.edit_rate_form)
        self.rate_heads = nn.Sequential(rate_head)
        if options.edit_time_embedding:
            self.time_embedding = TimeEmbedding(self.get_input_embeddings().embedding_dim)
            _starting_at_zero(self.time_embedding.outer)
        self.init_weights()  # of the heads: those of the source have theirs

    def _init_weights(self, module: nn.Module) -> None:
        if not hasattr(module, "edit_bias"):
            super()._init_weights(module)
            return
        init.zeros_(module.weight)
        if module.bias is not None:
            init.copy_(module.bias, torch.tensor(module.edit_bias).expand_as(module.bias))

    def forward(
        self,
        *args: Any,
        time: Tensor | None = None,
        edits: Callable[[EditStates], T] | None = None,
        edits_are_shifted: bool | None = None,
        **more: Any,
    ) -> object:
        """The source's forward with its own arguments; or what a reader makes of the edits' states.

        Args:
            time: (B,) float in [0, 1]; None: it is not said, as of a model that knows no time. A model without
                embedding of the time takes it and does nothing with it.
            edits: called once with the states, within this forward; nothing is then projected through the vocabulary
                head.
            edits_are_shifted: row i of the vocabulary head's logits scores token i + 1; None: as the configuration
                says, else the family.
        """
        with ExitStack() as hooks:
            if time is not None and self.edit_options.edit_time_embedding:
                moved = self.time_embedding(time)[:, None]  # (B, 1, H)
                embedding = self.get_input_embeddings()
                hooks.enter_context(_after(embedding, lambda _, embedded: embedded + moved.to(embedded.dtype)))
            if edits is None:
                return super().forward(*args, **more)
            hidden, anchor = self._what_the_head_reads(hooks, *args, **more)
        if edits_are_shifted is None:
            edits_are_shifted = getattr(self.config, "logits_are_shifted", self.is_shifted)
        return edits(self._states(hidden, anchor, edits_are_shifted))

    def _what_the_head_reads(self, hooks: ExitStack, *args: Any, **more: Any) -> tuple[Tensor, Tensor]:
        """The input (B, L, H) of the vocabulary head, and a zero that hangs on every weight which that skips.

        The head's own call goes over no rows. DDP and ZeRO wait for the gradients of its weights; they get zeros.
        """
        captured: list[Tensor] = []

        def before(_: nn.Module, inputs: tuple) -> tuple:
            captured.append(inputs[0])
            return (inputs[0][:, :0], *inputs[1:])

        hooks.enter_context(_before(self.get_output_embeddings(), before))
        if self.published_norm is not None and self.edit_options.edit_heads_read == "published":
            norm = self.get_submodule(self.published_norm)
            hooks.enter_context(_after(norm, lambda inputs, normed: inputs[0] + normed[:, :0].sum()))
        out = super().forward(*args, **more)
        return captured[0], out.logits.sum()

    def _states(self, hidden: Tensor, anchor: Tensor, is_shifted: bool) -> EditStates:
        substitute, insert = self._projections()
        insert_hidden = hidden + self.insert_mix(hidden) if insert is substitute else hidden
        rates = rates_from(self.rate_heads(hidden), self.edit_options.edit_rate_form)  # (B, L, 3)
        if is_shifted:
            published = self.edit_options.edit_heads_read == "published"
            hidden = one_later(hidden, empty=published)
            before = one_later(rates[..., :INSERT], empty=published)
            rates = torch.cat([before, rates[..., INSERT:]], -1)
        # A batch may hold no insertion at all; the weights of a head that is not called must have a gradient all the
        # same on every process.
        anchor = anchor + substitute(hidden[:, :0]).sum() + insert(insert_hidden[:, :0]).sum()
        return EditStates(rates + anchor, hidden, insert_hidden, substitute, insert)

    def _projections(self) -> tuple[nn.Module, nn.Module]:
        if self.edit_options.edit_vocabulary == "shared":
            own = self.get_output_embeddings()
            return own, own
        return self.sub_logits, self.ins_logits


def one_later(rows: Tensor, *, empty: bool) -> Tensor:
    """Row i of the result is row i - 1; the first is its own, or zero where that is to be ``empty``. (B, L, ...)"""
    first = torch.zeros_like(rows[:, :1]) if empty else rows[:, :1]
    return torch.cat([first, rows[:, :-1]], 1)


def _starting_at_zero(layer: nn.Linear) -> nn.Linear:
    """Noted on the layer: `_init_weights` sees one module at a time and cannot know its place."""
    layer.edit_bias = (0.0,)
    return layer


@contextmanager
def _before(module: nn.Module, change: Callable[[nn.Module, tuple], tuple]) -> Iterator[None]:
    """While it lasts the module's inputs are changed, for the thread that entered."""
    thread = threading.get_ident()

    def hook(own: nn.Module, inputs: tuple) -> tuple | None:
        return change(own, inputs) if threading.get_ident() == thread else None

    handle = module.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _after(module: nn.Module, change: Callable[[tuple, Tensor], Tensor]) -> Iterator[None]:
    """While it lasts the module's output is changed, for the thread that entered."""
    thread = threading.get_ident()

    def hook(_: nn.Module, inputs: tuple, output: Tensor) -> Tensor | None:
        return change(inputs, output) if threading.get_ident() == thread else None

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
