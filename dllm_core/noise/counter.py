"""Counter-based uniform noise: a pure function of a key and counters, the same number on every device and in any batch.

`torch.Generator` draws in order, so what a row receives depends on who else is in the batch, and CPU and GPU streams
differ. Here the draw for (key, row, step, position, ...) is computed from these numbers alone, so a row keeps its noise
whatever surrounds it.

Each counter is folded in with one step of SplitMix64 (Steele, Lea, Flood, "Fast Splittable Pseudorandom Number
Generators", OOPSLA 2014, figure 16, variant 13 of Stafford's mixer): along the last counter the draws are exactly a
SplitMix64 stream whose seed is the state folded so far.
"""

from __future__ import annotations

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio, odd: multiplying by it is a bijection of the counter
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB
_MASK = 0xFFFFFFFFFFFFFFFF
_UNIT_BITS = 52  # of 64; with the half step below that is all that a float64 holds without rounding up to 1.0


def key_from(seed: int, *parts: int) -> int:
    """A signed 64-bit key from a seed and any integers; the same folding as `fold`, in plain Python.

    Example:
        >>> key_from(0, 3) == int(fold(torch.tensor(0), torch.tensor(3)))
        True
    """
    state = _mix_int(seed & _MASK)
    for part in parts:
        state = _mix_int((state + (part + 1) * _GOLDEN) & _MASK)
    return _signed(state)


def fold(key: Tensor, *counters: Tensor | int) -> Tensor:
    """Folds counters into keys: int64 tensors that broadcast against each other -> int64 of the broadcast shape.

    The result is 64 well mixed bits; it serves as a key again. Put the counter with the largest shape last: the earlier
    ones are then folded on the smaller shape.

    Raises:
        TypeError: a tensor is not int64.
    """
    state = _mix(_int64(key).clone())
    for counter in counters:
        state = _mix(state + _spread(counter))
    return state


def uniform(key: Tensor, *counters: Tensor | int) -> Tensor:
    """Uniform draws in the open interval (0, 1), one for each element of the broadcast shape; float64, never 0 or 1.

    Args:
        key: int64, any shape, for instance (B, 1) with one key a row from `key_from`.
        counters: int64 tensors that broadcast against it, or Python integers, for instance step and position (1, L).

    Example:
        >>> keys = torch.tensor([key_from(seed, row) for row in rows])[:, None]  # (B, 1)
        >>> uniform(keys, step, torch.arange(length))  # (B, L)
    """
    bits = _shift_right(fold(key, *counters), 64 - _UNIT_BITS)
    # The half step keeps clear of 0; with 53 bits it would round the largest draw up to 1.
    return bits.to(torch.float64).add_(0.5).mul_(2.0**-_UNIT_BITS)


def _mix(state: Tensor) -> Tensor:
    """SplitMix64's finaliser, in place on a tensor that the caller owns. int64 products wrap modulo 2^64."""
    state.bitwise_xor_(_shift_right(state, 30)).mul_(_signed(_MIX_1))
    state.bitwise_xor_(_shift_right(state, 27)).mul_(_signed(_MIX_2))
    return state.bitwise_xor_(_shift_right(state, 31))


def _shift_right(value: Tensor, bits: int) -> Tensor:
    """Logical shift: torch shifts the sign in, so the bits that came from it are masked off."""
    return (value >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def _spread(counter: Tensor | int) -> Tensor | int:
    if isinstance(counter, int):
        return _signed((counter + 1) * _GOLDEN & _MASK)
    return (_int64(counter) + 1) * _signed(_GOLDEN)


def _int64(value: Tensor) -> Tensor:
    if value.dtype != torch.int64:
        raise TypeError(f"counter-based noise takes int64 tensors, got {value.dtype}; convert with .long()")
    return value


def _mix_int(state: int) -> int:
    state = (state ^ state >> 30) * _MIX_1 & _MASK
    state = (state ^ state >> 27) * _MIX_2 & _MASK
    return state ^ state >> 31


def _signed(value: int) -> int:
    """The int64 with the same 64 bits."""
    return value - (1 << 64) if value >> 63 else value
