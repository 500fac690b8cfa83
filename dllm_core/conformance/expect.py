"""Assertions of the suite. They raise on their own, so that ``python -O`` checks as much as plain ``python``."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


def expect(condition: object, message: str) -> None:
    """Raise AssertionError with the message unless the condition holds.

    The message names the values and what to do next.
    """
    if not bool(condition):
        raise AssertionError(message)


def expect_equal(got: object, want: object, message: str) -> None:
    """Raise AssertionError with the message and both values unless they are equal; tensors by every element."""
    if isinstance(got, Tensor) and isinstance(want, Tensor):
        got, want = got.tolist(), want.tolist()
    if got != want:
        raise AssertionError(f"{message}: got {got}, expected {want}")


def expect_close(got: Tensor, want: Tensor, message: str, *, tolerance: float = 1e-9) -> None:
    """Raise AssertionError with the message and the largest difference unless two tensors agree; nan equals nan."""
    if got.shape != want.shape:
        raise AssertionError(f"{message}: got shape {tuple(got.shape)}, expected {tuple(want.shape)}")
    if not got.allclose(want, rtol=tolerance, atol=tolerance, equal_nan=True):
        raise AssertionError(f"{message}: they differ by up to {float((got - want).nan_to_num().abs().max()):.3g}")


def expect_refused(call: Callable[[], object], error: type[Exception], word: str, what: str) -> None:
    """Raise AssertionError unless the call raises that error with a one-line message that holds the word."""
    try:
        call()
    except error as raised:
        message = str(raised)
        expect(word in message, f"{what} is refused without naming {word!r}: {message!r}; name it, and what is allowed")
        expect("\n" not in message, f"{what} is refused in several lines: {message!r}; say it in one")
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as raised:
        raise AssertionError(
            f"{what} ends in {type(raised).__name__}: {raised}; raise {error.__name__} where it comes in"
        ) from raised
    else:
        raise AssertionError(f"{what} is accepted; raise {error.__name__} with a message that names {word!r}")
