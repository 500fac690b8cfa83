"""Whose word counts: the options of a run, those of a task, and what lm-eval passes along with both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dllm_core import registry
from dllm_core.errors import OptionError, did_you_mean
from dllm_core.samplers import parts

# What lm-eval's tasks say in generation_kwargs that is no option of a sampler.
OF_TASKS = ("until", "max_gen_toks", "max_tokens", "max_length", "do_sample", "num_beams", "stop")
# Options of likelihoods, beside those of the sampler.
OF_LIKELIHOOD = ("mc_num", "levels", "mc_batch_size", "end_in_view")
# Options under the names of a task; what the run says itself counts for more.
SOFT = ("temperature", "top_k", "top_p")


@dataclass(frozen=True)
class Generation:
    """How one request is generated.

    Args:
        options: of the sampler, ``seed`` left out.
        stops: texts in front of which the completion ends.
    """

    options: Mapping[str, object]
    stops: tuple[str, ...]


def generation_from(sampler: str, given: Mapping[str, object], task: Mapping[str, object]) -> Generation:
    """The settings of a request.

    The run's own options (``given``) come before the task's ``max_gen_toks`` and sampling temperature, as in the
    published code; options of the sampler that a task names (``steps``, ``block_size`` ...) come before both.

    Args:
        sampler: name of the sampler.
        given: options of the run.
        task: what lm-eval passes with the request, ``generation_kwargs`` of the task.

    Raises:
        OptionError: something that is neither an option of the sampler nor known of tasks.
    """
    known = option_names(sampler, {**given, **task})
    for name in task:
        if name not in known and name not in OF_TASKS:
            near = did_you_mean(name, [*sorted(known), *OF_TASKS])
            raise OptionError(f"the task sets {name!r}, which sampler {sampler!r} does not know.{near}")
    named = {name: value for name, value in task.items() if name in known and name not in (*SOFT, *OF_TASKS)}
    soft = _sampling(task, known) if not set(SOFT) & set(given) else {}
    length = task.get("max_gen_toks", task.get("max_tokens"))
    lengths = {} if length is None or {"max_new_tokens", "max_length"} & set(given) else {"max_new_tokens": length}
    options = {**lengths, **soft, **given, **named}
    return Generation(options, _stops(task))


def option_names(sampler: str, given: Mapping[str, object]) -> set[str]:
    """Names of the options of a sampler, with those of the commit rule and the cache policy that are chosen."""
    found = registry.find("sampler", sampler).spec
    return parts.option_names(registry.load("sampler", sampler).options_class, {**found.defaults, **given}) - {"seed"}


def _sampling(task: Mapping[str, object], known: set[str]) -> dict[str, object]:
    """The task's temperature and filters; ``do_sample: false`` is greedy whatever the temperature says."""
    if not task.get("do_sample", task.get("temperature", 0)):
        return {}
    return {name: task[name] for name in SOFT if name in task and name in known}


def _stops(task: Mapping[str, object]) -> tuple[str, ...]:
    stops = task.get("until", task.get("stop", ()))
    return (stops,) if isinstance(stops, str) else tuple(stops or ())
