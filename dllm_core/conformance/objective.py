"""`ObjectiveTests`: what every training objective must hold."""

from __future__ import annotations

import functools

from dllm_core.conformance.expect import expect, expect_refused
from dllm_core.conformance.objective_exact import ExactChecks
from dllm_core.conformance.objective_loss import LossChecks
from dllm_core.conformance.objective_noise import NoiseChecks
from dllm_core.errors import OptionError
from dllm_core.objectives import Objective


class ObjectiveTests(NoiseChecks, LossChecks, ExactChecks):
    """The checks of an objective; a subclass names it and declares what it can do.

    Attributes are those of `dllm_core.conformance.objective_suite.ObjectiveSuite`. A test class holds one set of
    options; write one for each set that matters.

    Example:
        >>> class TestUniform(ObjectiveTests):
        ...     component = "acme/masked"
        ...     options = {"weighting": "uniform"}
        ...     bad_options = {"time_epsilon": [-0.1, 1]}
    """

    def test_options_are_a_frozen_dataclass(self) -> None:
        """The class derives from `Objective` and is a frozen dataclass of its options.

        Why: one object serves training and evaluation, so anything that it kept would leak from one to the other; a
        dataclass can be printed into the run's record and compared.

        Mend: write ``@dataclass(frozen=True, kw_only=True)`` over the class itself.
        """
        objective = self.load_component()
        derived = isinstance(objective, type) and issubclass(objective, Objective)
        expect(derived, f"{objective} does not derive from dllm_core.objectives.Objective; let it")
        own = objective.__dict__.get("__dataclass_params__")
        frozen = own is not None and own.frozen
        expect(frozen, f"{objective.__name__} is no frozen dataclass; decorate it with dataclass(frozen=True)")
        expect(self.make() == self.make(), f"two {objective.__name__} of the same options are not equal; leave __eq__")

    def test_bad_options_are_refused(self) -> None:
        """Unknown options and values out of range raise OptionError and are named, when the objective is made.

        Why: a misspelt schedule that is found in the first step of a run is found after hours in a queue.

        Mend: check ranges in ``__post_init__`` with `dllm_core.config.within` and `one_of`; list the bad values of your
        options in ``bad_options``.
        """
        for name, values in ({"no_such_option": [1]} | dict(self.bad_options)).items():
            for value in values:
                make = functools.partial(self.make, **{name: value})
                expect_refused(make, OptionError, name, f"option {name}={value}")
