"""The errors that a user can meet: each names the value, what is allowed and the next step, in one line."""

from __future__ import annotations

from collections.abc import Iterable


class DllmError(Exception):
    """Base of every error that the framework raises for its user. The command line exits with `exit_code`."""

    exit_code = 1


class UsageError(DllmError, ValueError):
    """What was asked for cannot be: an option, a prompt or a name is wrong."""

    exit_code = 2


class OptionError(UsageError):
    """An option is unknown, out of range, or does not go together with another."""


class PromptError(UsageError):
    """A prompt or canvas cannot be used: empty, too long, or with mask tokens where none may be."""


class UnknownComponentError(UsageError, KeyError):
    """No component of that name is installed."""

    def __str__(self) -> str:  # KeyError would print the message as a quoted repr
        return str(self.args[0])


class AmbiguousComponentError(UsageError):
    """Two plugins offer a component of that name; the full id ``plugin/name`` decides."""


class ComponentLoadError(DllmError, ImportError):
    """A component is registered, but its import string does not resolve to what the contract asks for."""


class ModelLoadError(DllmError, ValueError):
    """A checkpoint cannot be loaded: no such model, no config, no adapter for its family, no mask token."""


class DataError(UsageError):
    """A data file or data set cannot be used; the message names the file and the line."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`` Did you mean 'steps'?`` where a known name is near, otherwise nothing; follows a message's first sentence."""
    from difflib import get_close_matches  # only ever needed once something is wrong

    names = {candidate.casefold(): candidate for candidate in known}
    near = get_close_matches(str(name).casefold(), list(names), n=1)
    return f" Did you mean {names[near[0]]!r}?" if near else ""
