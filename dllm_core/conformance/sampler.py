"""`SamplerTests`: what every sampler must hold, on toys whose posterior is exact."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from dllm_core.conformance.expect import expect, expect_equal, expect_refused
from dllm_core.conformance.sampler_chance import ChanceChecks
from dllm_core.conformance.sampler_output import OutputChecks
from dllm_core.conformance.sampler_steps import StepChecks
from dllm_core.conformance.sampler_suite import CANVASES, LENGTH, MASK, NEW, PAD, PROMPTS, VOCAB, fresh
from dllm_core.errors import OptionError, PromptError


class SamplerTests(ChanceChecks, StepChecks, OutputChecks):
    """The checks of a sampler; a subclass names it and declares what it can do.

    The attributes are those of `dllm_core.conformance.sampler_suite.SamplerSuite`.

    Example:
        >>> class TestConfidence(SamplerTests):
        ...     component = "acme/confidence"
        ...     supports_infill = False
    """

    def test_bad_options_are_refused(self) -> None:
        """Unknown options and values out of range raise OptionError and are named, before anything is computed.

        Why: published samplers read options with kwargs.get, so a misspelt one is silently the default.

        Mend: declare options in a frozen dataclass that checks its ranges (`dllm_core.config`), derived from
        MaskedOptions. List your own options' bad values in ``bad_options``.
        """
        shared = {"no_such_option": [1], "steps": [0, -1], "block_size": [0], "temperature": [-1.0, float("nan")]}
        shared |= {"max_new_tokens": [0], "top_p": [1.5], "top_k": [0], "suppress_tokens": [[VOCAB + 1]]}
        shared = {name: values for name, values in shared.items() if name not in self.lacks}
        for name in self.lacks:
            chosen = self._registered_defaults() | dict(self.options) | {name: 1}
            make = functools.partial(self.load_component(), self.denoiser(), **chosen)
            expect_refused(make, OptionError, name, f"option {name}, which the sampler is declared to lack")
        for name, values in (shared | dict(self.bad_options)).items():
            for value in values:
                make = functools.partial(self.make, self.denoiser(), **{name: value})
                expect_refused(make, OptionError, name, f"option {name}={value}")

    def test_bad_prompts_are_refused(self) -> None:
        """Prompts that are empty, too long, hold masks or unknown ids, and canvases without a mask, raise PromptError.

        Why: a mask inside a prompt is silently filled as if it were part of the answer, and a prompt longer than the
        context gives garbage without an error in models with rotary positions.

        Mend: read prompts with `dllm_core.samplers.prompts.encode` and `check_lengths`, as `Sampler.start` does.
        """
        sampler = self.make()
        bad = {"holds a mask": ([[1, MASK]], "mask"), "is empty": ([[]], "empty")}
        bad |= {"holds an unknown id": ([[1, 99]], "99"), "does not fit": ([[1] * LENGTH], str(LENGTH))}
        for words, (prompts, named) in bad.items():
            sample = functools.partial(sampler.sample, fresh(prompts))
            expect_refused(sample, PromptError, named, f"a prompt that {words}: {prompts[0]}")
        if self.supports_infill:
            expect_refused(lambda: sampler.infill([[1, 0]]), PromptError, "mask", "a canvas without a mask")

    def test_inputs_are_not_changed(self) -> None:
        """Prompts and canvases are the caller's: lists and tensors are as they were.

        Why: a prompt that is extended in place is longer the second time it is used.

        Mend: copy what you keep; write into your own canvas.
        """
        prompts = fresh(PROMPTS)
        tensor = torch.tensor([[0, 2], [2, 1]])
        sampler = self.make(self.denoiser(pad=PAD))
        sampler.sample(prompts)
        expect_equal(prompts, PROMPTS, "a list of prompts after sampling")
        sampler.sample(tensor)
        expect_equal(tensor.tolist(), [[0, 2], [2, 1]], "a tensor of prompts after sampling")
        if self.supports_infill:
            canvases = fresh(CANVASES)
            sampler.infill(canvases)
            expect_equal(canvases, CANVASES, "a list of canvases after infilling")

    def test_the_model_is_left_as_it_was(self) -> None:
        """Weights, gradients, training mode, hooks and torch's gradient mode are the same before, during and after.

        Why: sampling during training must not switch dropout off for the rest of it, and ``no_grad`` around a
        generator's loop reaches into the caller's code between two steps.

        Mend: guard each forward pass, not the loop; undo hooks in ``finally``; leave train() and eval() to the caller.
        """
        denoiser = self.denoiser(pad=PAD)
        for training in (True, False):
            denoiser.model.train(training)
            before = _traits(denoiser.model)
            sampler = self.make(denoiser, temperature=self.temperature)
            stream = sampler.stream(fresh(PROMPTS))
            next(stream)
            with_gradients = torch.is_grad_enabled()
            stream.close()
            expect(with_gradients, "between two steps of a stream gradients are off; guard the forward pass only")
            sampler.sample(fresh(PROMPTS))
            for name, value in _traits(denoiser.model).items():
                same = torch.equal(value, before[name]) if isinstance(value, Tensor) else value == before[name]
                expect(same, f"sampling changes {name} of a model in training={training}; leave it as it was")

    def test_prompts_may_be_one_several_or_tensors(self) -> None:
        """One prompt, a list of prompts and a tensor of prompts mean the same.

        Why: users hold prompts in all three forms; a sampler that takes a flat list of ids for a batch of
        one-token prompts answers other questions than were asked.

        Mend: read prompts with `dllm_core.samplers.prompts.encode`.
        """
        sampler = self.make(self.denoiser(pad=PAD))
        want = sampler.sample([[2, 1]]).sequences
        for words, prompts in (("one list of ids", [2, 1]), ("a 1-D tensor", torch.tensor([2, 1]))):
            expect_equal(sampler.sample(prompts).sequences, want, f"sequences of {words}")
        expect_equal(sampler.sample(torch.tensor([[2, 1]])).sequences, want, "sequences of a 2-D tensor")
        expect_equal(sampler.sample(prompt=[2, 1]).sequences, want, "sequences of sample(prompt=...)")
        expect_equal(tuple(want.shape), (1, 2 + NEW), "shape of the sequences of one prompt of two tokens")


def _traits(model: nn.Module) -> dict[str, object]:
    """What must not change: weights, gradients, modes and the number of hooks."""
    traits: dict[str, object] = {f"weight {name}": value.detach().clone() for name, value in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        traits[f"gradients of {name}"] = (parameter.requires_grad, parameter.grad is None)
    traits["training mode"] = [module.training for module in model.modules()]
    traits["hooks"] = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    return traits
