"""A key-value cache whose positions can be written anew, for decoding in which a block is computed many times.

One buffer a layer, as long as the canvas: slot p of a row holds the key (after its rotary embedding) and the value of
that row's position p. Every forward overwrites the slots it is told to, which may differ from row to row, and reads all
slots up to a bound. What a query may look at among those is the business of the attention pattern, so no modelling
code needs to know of it: it serves every family that calls ``past_key_values.update``.

Shapes: B rows, L positions of the canvas, Q positions of one forward, S slots that are read, G key and value heads,
C head_dim.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import Cache, PreTrainedConfig
from transformers.cache_utils import CacheLayerMixin


class BlockLayer(CacheLayerMixin):
    """The buffers of one layer; the slot behind the last position takes what belongs nowhere and is never read."""

    def __init__(self, rows: int, length: int) -> None:
        super().__init__()
        self.rows, self.length = rows, length

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Take the memory, in the heads, type and device that the model turns out to have."""
        # Zeros: a slot that nobody may look at still enters the sum with weight 0, and 0 * nan is nan.
        for name, states in (("keys", key_states), ("values", value_states)):
            shape = (self.rows, states.shape[1], self.length + 1, states.shape[3])
            setattr(self, name, states.new_zeros(shape))
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, slots: torch.Tensor, stop: int, rows: slice
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write (B, G, Q, C) at slots (B, Q) of those rows and hand out their first ``stop``. -> two (B, G, S, C)"""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        for buffer, states in ((self.keys, key_states), (self.values, value_states)):
            buffer[rows].scatter_(2, slots[:, None, :, None].expand_as(states), states)
        return self.keys[rows, :, :stop], self.values[rows, :, :stop]

    def level(self, chosen: torch.Tensor, slots: torch.Tensor) -> None:
        """Copy slots (R, Q) of one row of each group, (R,) int64, to all rows of its group."""
        if not self.is_initialized:
            return
        groups = torch.arange(len(chosen), device=slots.device)[:, None]
        for buffer in (self.keys, self.values):
            taken = buffer[chosen[:, None], :, slots]  # (R, Q, G, C)
            buffer.unflatten(0, (len(chosen), -1))[groups, :, :, slots] = taken[:, :, None]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length, 0

    def get_seq_length(self) -> int:
        return self.length if self.is_initialized else 0

    def get_max_length(self) -> int:
        return self.length

    def move_up(self, rows: torch.Tensor) -> None:
        """Put these rows first, in the same memory. (R,) int64"""
        if self.is_initialized:
            self.keys[: len(rows)] = self.keys[rows]
            self.values[: len(rows)] = self.values[rows]

    def select(self, rows: torch.Tensor) -> None:
        """Keep only these rows. (R,) int64"""
        self.rows = len(rows)
        if self.is_initialized:
            self.keys, self.values = self.keys[rows], self.values[rows]


class BlockCache(Cache):
    """Preallocated keys and values of a canvas, overwritten in place at positions that differ per row.

    Args:
        rows: B.
        length: L, positions of the longest row.

    Example:
        >>> cache = BlockCache(rows=2, length=64)
        >>> cache.place(positions, stop=40)  # (2, Q) int64: where the next forward's keys and values go
        >>> denoiser.logits(ids, at=at, position_ids=positions, attention=pattern, cache=cache)  # pattern (2, 1, Q, 40)
    """

    def __init__(self, rows: int, length: int) -> None:
        super().__init__(layers=[])
        self.rows, self.length = rows, length
        self.steps: dict[object, Callable] = {}  # graphs captured over these buffers: they live and go with them
        self.begin()

    def begin(self) -> None:
        """Serve a new run: whatever is held belongs to none of its positions."""
        self._slots: torch.Tensor | None = None
        self._stop = self._filled = 0
        self.copies = 1  # how many rows stand side by side for each that a run goes on with
        self._behind: list[torch.Tensor] = []  # slots that only the first of each group were written at

    def settle(self) -> None:
        """Count every slot as filled from now on: a number that no compiled forward finds changed."""
        self._filled = self.length

    @staticmethod
    def bytes_needed(config: PreTrainedConfig, rows: int, length: int, dtype: torch.dtype) -> int:
        """The memory that a cache takes, known before it is taken.

        Args:
            config: of the model.
            rows, length: as of the cache.
            dtype: that keys and values are computed in.
        """
        text = config.get_text_config()
        heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
        size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        return 2 * text.num_hidden_layers * rows * heads * (length + 1) * size * dtype.itemsize

    @property
    def nowhere(self) -> int:
        """The slot for what shall not be kept: padding among the positions of a forward."""
        return self.length

    def place(self, slots: torch.Tensor, stop: int) -> None:
        """Say where the next forward's keys and values go, and how many slots its queries read.

        Args:
            slots: (B, Q) int64; within a row no slot twice, except `nowhere`.
            stop: S; slots 0 to S - 1 are read, those that were never written hold zeros.
        """
        self._slots, self._stop = slots, stop
        if self.among(slots.shape[0]).step > 1:
            self._behind.append(slots)

    def among(self, rows: int) -> slice:
        """Which of the rows that are held a forward of so many is for: all, the first ones, or one of each group."""
        step = self.copies if rows * self.copies == self.rows else 1
        return slice(0, rows * step, step)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, cache_kwargs: object = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What a model's attention calls: two (B, G, Q, C) in, two (B, G, S, C) out."""
        while len(self.layers) <= layer_idx:
            self.layers.append(BlockLayer(self.rows, self.length))
        assert self._slots is not None, "place() comes before the forward"
        self._filled = max(self._filled, self._stop)
        rows = self.among(self._slots.shape[0])
        return self.layers[layer_idx].update(key_states, value_states, self._slots, self._stop, rows)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """The largest ``stop`` of all forwards so far, 0 before the first; all slots once it is settled."""
        return self._filled

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return self._stop, 0

    def move_up(self, rows: torch.Tensor) -> None:
        """Keep only these rows, first in the same memory; forwards of fewer rows use the first ones. (R,) int64"""
        for layer in self.layers:
            layer.move_up(rows)

    def select(self, rows: torch.Tensor) -> None:
        """Keep only these rows, with their copies, and give back the memory of the others. (R,) int64"""
        self._behind = [slots[rows] for slots in self._behind]
        rows = (rows[:, None] * self.copies + torch.arange(self.copies)).flatten()
        self.rows, self._slots = len(rows), None
        for layer in self.layers:
            layer.select(rows)

    def fork(self, copies: int) -> None:
        """Let every row stand that many times, side by side, for forwards that try several ways on.

        A forward of as many rows as before goes on writing and reading the first of each group. The first fork takes
        the memory; any other one copies what the first rows were written at since the last.
        """
        if self.copies != copies:
            self.select(torch.arange(self.rows).repeat_interleave(copies))
            self.copies = copies
        for slots in self._behind:
            self._level(torch.arange(len(slots)) * copies, slots)
        self._behind = []

    def follow(self, chosen: torch.Tensor) -> None:
        """After a forward of all copies: go on from one of each group. (R,) int64, numbers among all rows

        Only slots that this forward wrote are copied, where rows of a group write the same ones or `nowhere`.
        """
        if self.copies > 1:
            self._level(chosen, self._slots.unflatten(0, (-1, self.copies)).amin(1))

    def _level(self, chosen: torch.Tensor, slots: torch.Tensor) -> None:
        for layer in self.layers:
            layer.level(chosen.to(slots.device), slots)
