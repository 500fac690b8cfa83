"""The model that lm-eval sees: what it is asked and what it answers, on a bundled checkpoint and on an exact toy."""

from __future__ import annotations

import json
import math

import pytest
import torch

import dllm_core as dllm
from dllm_core.conformance.toy import random_joint, toy_denoiser
from dllm_core.errors import OptionError, PromptError

pytest.importorskip("lm_eval")
from lm_eval.api.instance import Instance

from dllm_core.evaluation import DiffusionLM, LikelihoodOptions, estimate
from dllm_core.evaluation.bridge import counted_calls
from dllm_core.evaluation.journal import Journal, fingerprint
from dllm_core.evaluation.texts import cut_at_stops, encode_pair, encode_prompt

PROMPTS = ["reverse matrix", "uppercase guitar", "345+799=", "sort 1618033", "repeat matrix"]
JOINT = random_joint(3, 5, seed=4)


@pytest.fixture(scope="module")
def tiny() -> dllm.Denoiser:
    return dllm.load("llada-tiny", device="cpu", dtype="float32")


@pytest.fixture
def toy() -> dllm.Denoiser:
    return toy_denoiser(JOINT, with_words=True)


def ask(kind: str, *arguments: tuple) -> list[Instance]:
    return [Instance(kind, {}, each, number) for number, each in enumerate(arguments)]


def chat(lm: DiffusionLM, text: str) -> str:
    return lm.apply_chat_template([{"role": "user", "content": text}])


def generate(lm: DiffusionLM, texts: list[str], **task: object) -> list[str]:
    return lm.generate_until(ask("generate_until", *((chat(lm, text), {"until": [], **task}) for text in texts)))


def test_texts_are_those_of_the_sampler_whatever_shares_the_batch(tiny):
    sampler = dllm.sampler("mdlm", tiny, max_new_tokens=32)
    want = [sampler.sample([{"role": "user", "content": text}]).texts[0] for text in PROMPTS]
    for batch_size in (1, 2, 5):
        lm = DiffusionLM(denoiser=tiny, batch_size=batch_size, max_new_tokens=32)
        assert generate(lm, PROMPTS) == want
    assert want[:2] == ["xirtam", "GUITAR"]


def test_batches_are_full_and_of_like_lengths(tiny, monkeypatch):
    lm = DiffusionLM(denoiser=tiny, batch_size=2, max_new_tokens=8)
    sizes, original = [], lm._generate
    monkeypatch.setattr(lm, "_generate", lambda batch: sizes.append([len(r.prefix) for r in batch]) or original(batch))
    generate(lm, PROMPTS)
    lengths = [length for batch in sizes for length in batch]
    assert [len(batch) for batch in sizes] == [2, 2, 1]
    assert lengths == sorted(lengths, reverse=True)


@pytest.mark.parametrize(("stops", "want"), [(["r"], "xi"), (["a", "i"], "x"), ("t", "xir"), ([""], "xirtam")])
def test_a_text_ends_in_front_of_its_first_stop_string(tiny, stops, want):
    lm = DiffusionLM(denoiser=tiny, max_new_tokens=32)
    assert generate(lm, PROMPTS[:1], until=stops) == [want]


def test_whose_word_counts(tiny):
    lm = DiffusionLM(denoiser=tiny)
    request = chat(lm, PROMPTS[0])

    def passes(own: dict, task: dict) -> int:
        lm = DiffusionLM(denoiser=tiny, **own)
        with counted_calls(tiny) as calls:
            lm.generate_until(ask("generate_until", (request, {"until": [], **task})))
        return calls["forward"]

    no_end = {"stop_at_eos": False}
    assert passes(no_end, {"max_gen_toks": 6}) == 6
    assert passes({**no_end, "max_new_tokens": 4}, {"max_gen_toks": 6}) == 4
    assert passes({**no_end, "max_new_tokens": 4}, {"max_new_tokens": 8}) == 8
    assert passes({**no_end, "max_new_tokens": 4}, {"steps": 2}) == 2


def test_the_tasks_temperature_counts_where_it_samples(tiny):
    lm = DiffusionLM(denoiser=tiny, max_new_tokens=32)
    greedy = generate(lm, PROMPTS, do_sample=False, temperature=50.0)
    assert greedy == generate(lm, PROMPTS)
    assert generate(lm, PROMPTS, do_sample=True, temperature=50.0) != greedy
    assert generate(DiffusionLM(denoiser=tiny, max_new_tokens=32, temperature=0.0), PROMPTS, temperature=50) == greedy


def test_what_is_no_option_is_refused(tiny):
    with pytest.raises(OptionError, match="stepz"):
        generate(DiffusionLM(denoiser=tiny, max_new_tokens=8), PROMPTS[:1], stepz=3)
    for wrong in ({"stepz": 3}, {"mc_num": 0}, {"likelihood": "exact"}, {"batch_size": "auto"}, {"max_batch_size": 4}):
        with pytest.raises(OptionError):
            DiffusionLM(denoiser=tiny, **wrong)
    with pytest.raises(OptionError):
        DiffusionLM()


def test_a_prompt_with_masks_is_filled(tiny):
    lm = DiffusionLM(denoiser=tiny)
    hole = tiny.tokenizer.mask_token
    given = ask("generate_until", (f"turtle|{hole * 6}", {"until": []}), (f"58+{hole * 2}=143", {"until": []}))
    assert lm.generate_until(given) == ["turtle|eltrut", "58+85=143"]


def test_repeats_of_a_prompt_draw_noise_of_their_own_and_a_seed_gives_the_same_again(tiny):
    options = {"denoiser": tiny, "max_new_tokens": 8, "temperature": 5.0}
    first = generate(DiffusionLM(**options, batch_size=3), PROMPTS[:1] * 6)
    assert len(set(first)) > 1
    assert generate(DiffusionLM(**options, batch_size=2), PROMPTS[:1] * 6) == first
    assert generate(DiffusionLM(**options, seed=1), PROMPTS[:1] * 6) != first


def test_likelihoods_are_the_estimates_with_their_errors(tiny):
    lm = DiffusionLM(denoiser=tiny, mc_num=8, levels="antithetic", batch_size=4)
    pairs = [("28+55=", "83"), ("", "matrix|xirtam"), ("turtle|", "eltrut")]
    got = lm.loglikelihood(ask("loglikelihood", *pairs))
    options = LikelihoodOptions(mc_num=8, levels="antithetic")
    want = estimate(tiny, [encode_pair(tiny, *pair) for pair in pairs], options)
    assert [value for value, _ in got] == pytest.approx([each.value for each in want], abs=1e-4)
    assert [greedy for _, greedy in got] == [True, False, True]
    errors = lm.standard_errors(lm.asked)
    assert errors == pytest.approx([each.standard_error for each in want], abs=1e-4)
    assert errors[0] == 0 < errors[1]


def test_choices_of_one_token_cost_one_copy(toy):
    lm = DiffusionLM(denoiser=toy, mc_num=128)
    with counted_calls(toy) as calls:
        got = lm.loglikelihood(ask("loglikelihood", *(("w0 w1", f" w{token}") for token in range(3))))
    shares = JOINT[0, 1].sum((-1, -2)) / JOINT[0, 1].sum()
    assert [math.exp(value) for value, _ in got] == pytest.approx(shares.tolist(), abs=1e-9)
    assert [greedy for _, greedy in got] == [bool(i == shares.argmax()) for i in range(3)]
    assert calls["forward"] == 2  # one canvas for all choices, once to score and once to see which is greedy


def test_batches_of_likelihoods_are_full_of_canvases_not_of_requests(toy):
    lm = DiffusionLM(denoiser=toy, mc_num=128, mc_batch_size=8)
    pairs = [(f"w{a} w{b}", f" w{c}") for a in range(3) for b in range(3) for c in range(3)]
    with counted_calls(toy) as calls:
        answers = lm.loglikelihood(ask("loglikelihood", *pairs))
    assert calls["forward"] == 2 * 2  # nine canvases
    assert [sum(math.exp(value) for value, _ in answers[n : n + 3]) for n in range(0, 27, 3)] == pytest.approx([1] * 9)
    assert sum(greedy for _, greedy in answers) == 9


@pytest.mark.parametrize("settings", [{"likelihood": "block", "block_size": 2}, {"sampler": "bd3lm", "block_size": 2}])
def test_block_models_give_the_product_over_blocks(toy, settings):
    lm = DiffusionLM(denoiser=toy, **settings)
    ((value, _),) = lm.loglikelihood(ask("loglikelihood", ("w0", " w1 w2 w0")))
    assert value == pytest.approx(float((JOINT[0, 1, 2, 0].sum() / JOINT[0].sum()).log()), abs=1e-9)


def test_a_whole_text_is_scored_from_nothing_and_in_windows(toy):
    lm = DiffusionLM(denoiser=toy)
    (value,) = lm.loglikelihood_rolling(ask("loglikelihood_rolling", ("w0 w1 w2 w1",)))
    assert value == pytest.approx(float(JOINT[0, 1, 2, 1].sum().log()), abs=1e-9)
    (longer,) = lm.loglikelihood_rolling(ask("loglikelihood_rolling", ("w0 w1 w2 w1 w0 w0 w1 w2 w2",)))
    assert longer < value


def test_a_context_that_is_too_long_loses_its_beginning(toy):
    lm = DiffusionLM(denoiser=toy)
    long, short = lm.loglikelihood(ask("loglikelihood", ("w2 w2 w0 w1 w1", " w0"), ("w2 w0 w1 w1", " w0")))
    assert long == short
    with pytest.raises(PromptError, match="context"):
        lm.loglikelihood(ask("loglikelihood", ("w0", " w1 w1 w1 w1 w1 w1")))


def test_what_is_answered_is_not_asked_again(tiny, tmp_path):
    def run() -> tuple[list, int]:
        journal = Journal(tmp_path)
        lm = DiffusionLM(denoiser=tiny, batch_size=2, max_new_tokens=8, mc_num=4, journal=journal)
        texts = generate(lm, PROMPTS)
        return [texts, lm.loglikelihood(ask("loglikelihood", ("28+55=", "83"), ("a", "bcdefg")))], journal.computed

    first, computed = run()
    assert computed == len(PROMPTS) + 2
    assert run() == (first, 0)
    file = tmp_path / "requests-0.jsonl"
    lines = [line for line in file.read_bytes().split(b"\n") if line]
    file.write_bytes(b"\n".join([*lines[:2], lines[2][:30]]))
    again, computed = run()
    assert (again, computed) == (first, 3)
    assert all(json.loads(line) for line in file.read_bytes().split(b"\n") if line and line != lines[2][:30])


def test_other_settings_and_other_weights_are_other_requests(tiny, toy, tmp_path):
    asked = ask("loglikelihood", ("28+55=", "83"))
    for number, settings in enumerate([{}, {"mc_num": 2}, {"seed": 1}, {"guidance_scale": 1.0}]):
        journal = Journal(tmp_path)
        DiffusionLM(denoiser=tiny, journal=journal, **settings).loglikelihood(asked)
        assert (journal.found, journal.computed) == (number, 1)
    before = fingerprint(toy)
    with torch.no_grad():
        toy.model.head.weight.mul_(1.01)
    assert fingerprint(toy) != before


def test_equal_likelihood_requests_are_computed_once(toy):
    journal = Journal()
    lm = DiffusionLM(denoiser=toy, journal=journal)
    answers = lm.loglikelihood(ask("loglikelihood", *[("w0", " w1 w2")] * 4))
    assert (len(set(answers)), journal.computed) == (1, 1)


def test_blanks_between_context_and_continuation_belong_to_the_latter(tiny):
    assert encode_pair(tiny, "28+55= ", "83") == encode_pair(tiny, "28+55=", " 83")
    prefix, target = encode_pair(tiny, "ab", " cd")
    assert tiny.tokenizer.decode(prefix + target) == "ab cd"


def test_special_tokens_stand_in_front_once_and_never_behind(tiny):
    tokenizer = tiny.tokenizer
    bos = tokenizer.bos_token_id
    assert encode_prompt(tiny, "abc", add_bos=True) == [bos, *tokenizer("abc", add_special_tokens=False)["input_ids"]]
    text = tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
    assert encode_prompt(tiny, text, add_bos=True).count(bos) == 1


@pytest.mark.parametrize(("stops", "want"), [((), "a b c"), (("c", "b"), "a "), (("a",), ""), (("", "d"), "a b c")])
def test_stop_strings(stops, want):
    assert cut_at_stops("a b c", stops) == want
