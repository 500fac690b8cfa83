"""What the checks of commit rules and cache policies share: both are frozen dataclasses inside the sampling loop."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor

from dllm_core.config import from_mapping
from dllm_core.conformance.expect import expect, expect_refused
from dllm_core.conformance.sampler_suite import END, LENGTH, NEW, PAD, VOCAB
from dllm_core.conformance.suite import Suite
from dllm_core.conformance.toy import random_joint, toy_denoiser
from dllm_core.errors import OptionError
from dllm_core.models.denoiser import Denoiser
from dllm_core.samplers import MaskedOptions, MDLMSampler


class PartSuite(Suite):
    """Attributes of the test class, and the checks of options.

    Attributes:
        options: options to run the part with.
        bad_options: values that its options must refuse, ``{"threshold": [-0.1, 1.5]}``.
    """

    options: ClassVar[Mapping[str, object]] = {}
    bad_options: ClassVar[Mapping[str, Sequence[object]]] = {}
    base_class: ClassVar[type]
    part: ClassVar[str]  # the attribute of the sampler that holds it

    def make(self, **options: object) -> object:
        """The part under test, with the options of the class and these."""
        return from_mapping(self.load_component(), dict(self.options) | options, what=self.kind)

    def denoiser(self, joint: Tensor | None = None, **conventions: object) -> Denoiser:
        """The toy model that the loop runs on; override where the part needs another kind of model."""
        conventions = {"eos": END, "pad": PAD} | conventions
        return toy_denoiser(random_joint(VOCAB, LENGTH, seed=1) if joint is None else joint, **conventions)

    def sampler(self, part: object, denoiser: Denoiser | None = None, **options: object) -> MDLMSampler:
        """The core's sampler with that part in it."""
        chosen = {"max_new_tokens": NEW, "stop_at_eos": False} | options
        sampler = MDLMSampler(self.denoiser() if denoiser is None else denoiser, **chosen)
        setattr(sampler, self.part, part)
        return sampler

    def test_options_are_a_frozen_dataclass(self) -> None:
        """The class derives from the contract's and is a frozen dataclass, whose options have names of their own.

        Why: one object serves all runs of a sampler, so anything that it kept would leak from one run to the next; an
        option named like one of the sampler's would silently get that one's value.

        Mend: write ``@dataclass(frozen=True, kw_only=True)``; rename the option.
        """
        part = self.load_component()
        expect(isinstance(part, type) and issubclass(part, self.base_class), f"{part} is no {self.base_class.__name__}")
        own = part.__dict__.get("__dataclass_params__")
        expect(own is not None and own.frozen, f"{part.__name__} is no frozen dataclass; decorate it with frozen=True")
        shared = {field.name for field in dataclasses.fields(MaskedOptions)}
        taken = sorted(shared & {field.name for field in dataclasses.fields(part)})
        expect(not taken, f"options {taken} of {part.__name__} are the sampler's already; give them other names")

    def test_bad_options_are_refused(self) -> None:
        """Unknown options and values out of range raise OptionError and are named.

        Why: a threshold of 90 instead of 0.9 that is accepted decodes one token a step and blames the method.

        Mend: check ranges in ``__post_init__`` with `dllm_core.config.within` and `at_least`; list the bad values of
        your options in ``bad_options``.
        """
        for name, values in ({"no_such_option": [1]} | dict(self.bad_options)).items():
            for value in values:
                make = functools.partial(self.make, **{name: value})
                expect_refused(make, OptionError, name, f"option {name}={value}")
