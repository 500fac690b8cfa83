"""The trainer: one loss however the step is cut, noise from keys alone, fixed evaluation, resume to the last bit."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedConfig

from dllm_core.conformance.toy import ToyAdapter, ToyOutput, entropy, random_joint
from dllm_core.errors import DataError, OptionError
from dllm_core.models.denoiser import Denoiser
from dllm_core.noise import apply_mask, get_schedule
from dllm_core.objectives.base import maskable_positions
from dllm_core.objectives.mdlm import NORMALIZATIONS, MDLMObjective
from dllm_core.training import DiffusionArguments, DiffusionCollator, DiffusionTrainer, MDLMConfig, MDLMTrainer
from dllm_core.training.checks import check_average

VOCAB, LENGTH = 5, 6
MASK = VOCAB


class TinyModel(nn.Module):
    """A trainable denoiser: every position sees the mean of the others' embeddings by place, then a small MLP."""

    def __init__(self, *, dropout: float = 0.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.tokens = nn.Embedding(VOCAB + 1, 16)
        self.mix = nn.Parameter(torch.empty(LENGTH, LENGTH, 16))
        self.inner, self.dropout = nn.Linear(16, 32), nn.Dropout(dropout)
        self.outer, self.head = nn.Linear(32, 16), nn.Linear(16, VOCAB + 1)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.3, generator=generator)
        self.config = PreTrainedConfig(max_position_embeddings=LENGTH)

    def get_input_embeddings(self) -> nn.Module:
        return self.tokens

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, input_ids, attention_mask=None, position_ids=None):
        length = input_ids.shape[1]
        states = self.tokens(input_ids)
        if attention_mask is not None:
            states = states * attention_mask[..., None]
        states = torch.einsum("bjd,ijd->bid", states, self.mix[:length, :length])
        return ToyOutput(self.head(self.outer(self.dropout(torch.tanh(self.inner(states))))))


class NoiseOfTheRow(MDLMObjective):
    """Noise that depends on the row alone, so that steps which are cut differently can be compared."""

    def corrupt(self, batch, denoiser, *, generator):
        ids = batch["input_ids"]
        places = torch.arange(ids.shape[1])
        time = (0.2 + 0.1 * (ids[:, :3].sum(1) % 7)).float()
        masked = ((ids * 7 + places * 3 + ids[:, :1]) % 3 == 0) & maskable_positions(batch)
        return apply_mask(ids, masked, denoiser.mask_token_id, time)


def denoiser(**options) -> Denoiser:
    return Denoiser(TinyModel(**options), ToyAdapter(), special_ids={"mask": MASK, "pad": 0})


def ragged_examples(count: int) -> list[dict[str, list[int]]]:
    generator = torch.Generator().manual_seed(5)
    examples = []
    for _ in range(count):
        length = int(torch.randint(3, LENGTH + 1, (), generator=generator))
        ids = torch.randint(0, VOCAB, (length,), generator=generator)
        ignored = torch.rand(length, generator=generator) < 0.3
        examples.append({"input_ids": ids.tolist(), "labels": ids.masked_fill(ignored, -100).tolist()})
    return examples


def arguments(folder: Path, **options) -> DiffusionArguments:
    settings = {
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "learning_rate": 0.01,
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        "train_sampling_strategy": "sequential",
    }
    return DiffusionArguments(output_dir=str(folder), **(settings | options))


def weights(trainer: DiffusionTrainer) -> torch.Tensor:
    return torch.cat([value.detach().flatten() for value in trainer.denoiser.model.parameters()])


def logged(trainer: DiffusionTrainer, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


# ------------------------------------------------------------------------------------------------------- the loss


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_the_same_step_however_it_is_cut(tmp_path, normalization):
    """One batch of 8, two of 4, four of 2: the same losses, gradient norms and weights."""
    runs = []
    for size in (8, 4, 2):
        args = arguments(
            tmp_path, per_device_train_batch_size=size, gradient_accumulation_steps=8 // size, max_grad_norm=0.5
        )
        objective = NoiseOfTheRow(normalization=normalization)
        trainer = DiffusionTrainer(denoiser(), args, objective=objective, train_dataset=ragged_examples(32))
        trainer.train()
        runs.append((weights(trainer), logged(trainer, "loss"), logged(trainer, "grad_norm")))
    for got in runs[1:]:
        torch.testing.assert_close(got[0], runs[0][0], atol=1e-6, rtol=1e-5)
        assert got[1] == pytest.approx(runs[0][1], rel=1e-4)  # as they are rounded for the log
        assert got[2] == pytest.approx(runs[0][2], rel=1e-4)
    assert len(runs[0][1]) == 4


def test_an_unfinished_step_counts_what_it_has(tmp_path):
    """10 examples in steps of 4 + 4 and 2: the last step is divided by its own tokens."""
    runs = []
    for size, accumulation in ((8, 1), (2, 4)):
        args = arguments(
            tmp_path,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
            max_steps=-1,
            num_train_epochs=1,
        )
        trainer = DiffusionTrainer(denoiser(), args, objective=NoiseOfTheRow(), train_dataset=ragged_examples(10))
        trainer.train()
        runs.append(weights(trainer))
    torch.testing.assert_close(runs[0], runs[1], atol=1e-6, rtol=1e-5)


TWO_PROCESSES = """
import sys, torch
sys.path.insert(0, {folder!r})
from dllm_core.training.launch import WorkerEnd
end = WorkerEnd()
import test_training as here
from pathlib import Path
processes = int(sys.argv[1])
here.torch.set_num_threads(1)
args = here.arguments(Path(sys.argv[2]), per_device_train_batch_size=8 // processes)
objective = here.NoiseOfTheRow(normalization=sys.argv[3])
trainer = here.DiffusionTrainer(here.denoiser(), args, objective=objective, train_dataset=here.ragged_examples(32))
assert args.world_size == processes, args.world_size
trainer.train()
if args.process_index == 0:
    torch.save((here.weights(trainer), here.logged(trainer, "loss")), Path(sys.argv[2]) / f"{{processes}}.pt")
same = {{"input_ids": torch.zeros(1, 256, dtype=torch.long)}}
masks = []
for counters in ((0, 3, 1), (1, 3)):  # training and evaluation noise, of the same row
    drawn = here.MDLMObjective().corrupt(same, trainer.denoiser, generator=trainer._generator(*counters))
    masks.append("".join("x" if m else "." for m in drawn.masked[0].tolist()))
(Path(sys.argv[2]) / f"{{processes}}-{{args.process_index}}.masks").write_text(" ".join(masks))
end.with_code(0)
"""


@pytest.mark.slow
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_two_processes_train_like_one(tmp_path, normalization):
    script = tmp_path / "script.py"
    script.write_text(TWO_PROCESSES.format(folder=str(Path(__file__).parent)))
    for processes in (1, 2):
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        done = subprocess.run(
            [*launcher, str(script), str(processes), str(tmp_path), normalization],
            capture_output=True,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
    one, two = (torch.load(tmp_path / f"{processes}.pt") for processes in (1, 2))
    torch.testing.assert_close(two[0], one[0], atol=1e-6, rtol=1e-5)
    assert two[1] == pytest.approx(one[1], rel=1e-4)
    masks = [mask for file in tmp_path.glob("*.masks") for mask in file.read_text().split()]
    assert len(masks) == 6
    assert len(set(masks)) == 4  # rank 0 of both runs agrees, rank 1 draws its own; evaluation is a stream of its own


# ------------------------------------------------------------------------------------------------------ the noise


class Recording(MDLMObjective):
    """Keeps what was hidden, in `seen` of the class."""

    seen: list[torch.Tensor] = []  # noqa: RUF012

    def corrupt(self, batch, denoiser, *, generator):
        drawn = super().corrupt(batch, denoiser, generator=generator)
        Recording.seen.append(drawn.masked)
        return drawn


def record(folder: Path, *, resume: Path | None = None, **options) -> tuple[list[torch.Tensor], torch.Tensor]:
    Recording.seen = []
    args = arguments(folder, **options)
    trainer = DiffusionTrainer(
        denoiser(dropout=0.1),
        args,
        objective=Recording(),
        train_dataset=ragged_examples(64),
        eval_dataset=ragged_examples(8),
    )
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    return Recording.seen, weights(trainer)


def test_noise_differs_by_step_and_micro_step_and_repeats_by_seed(tmp_path):
    same = [{"input_ids": [1] * LENGTH}] * 64
    Recording.seen = []
    args = arguments(tmp_path, gradient_accumulation_steps=2)
    DiffusionTrainer(denoiser(), args, objective=Recording(), train_dataset=same).train()
    assert len(Recording.seen) == 8
    assert len({tuple(masked.flatten().tolist()) for masked in Recording.seen}) == 8
    first, trained = record(tmp_path)
    again, trained_again = record(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert torch.equal(trained, trained_again)
    other, _ = record(tmp_path, seed=1)
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("step", [2, 8, 10])  # within the first epoch of 8 steps, between them, within the second
@pytest.mark.parametrize(
    "options",
    [
        {"train_sampling_strategy": "random", "max_steps": 12},
        {"train_sampling_strategy": "group_by_length", "max_steps": -1, "num_train_epochs": 1.5},
        {"train_sampling_strategy": "random", "max_steps": 12, "dataloader_num_workers": 1, "ema_decay": 0.9},
    ],
    ids=["random", "group_by_length", "workers"],
)
def test_a_resumed_run_ends_in_the_same_bits(tmp_path, options, step):
    options |= {"gradient_accumulation_steps": 2, "save_strategy": "steps", "save_steps": 2}
    whole, want = record(tmp_path / "whole", **options)
    rest, got = record(tmp_path / "again", resume=tmp_path / "whole" / f"checkpoint-{step}", **options)
    assert len(whole) == 24
    assert len(rest) == 2 * (12 - step)
    assert all(torch.equal(a, b) for a, b in zip(whole[2 * step :], rest, strict=True))
    assert torch.equal(got, want)


def test_evaluation_does_not_move_training(tmp_path):
    _, without = record(tmp_path)
    masks, with_evaluation = record(tmp_path, eval_strategy="steps", eval_steps=1, per_device_eval_batch_size=8)
    assert torch.equal(without, with_evaluation)
    evaluated = [masked for masked in masks if len(masked) == 8]
    assert len(evaluated) == 4
    assert all(torch.equal(masked, evaluated[0]) for masked in evaluated)  # the same noise every time


# ------------------------------------------------------------------------------------------------- the evaluation


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_evaluation_reports_bounds_over_all_batches(tmp_path, normalization):
    examples = ragged_examples(10)
    reports = []
    for size in (10, 4):  # 4 + 4 + 2
        objective = NoiseOfTheRow(normalization=normalization, weighting="uniform")
        args = arguments(tmp_path, per_device_eval_batch_size=size)
        trainer = DiffusionTrainer(denoiser(), args, objective=objective, eval_dataset=examples)
        reports.append(trainer.evaluate())
    for name in ("eval_loss", "eval_nll", "eval_perplexity"):
        assert reports[1][name] == pytest.approx(reports[0][name], rel=1e-5)
    batch = DiffusionCollator(pad_token_id=0)(examples)
    objective, model = NoiseOfTheRow(normalization=normalization), denoiser()
    corruption = objective.corrupt(batch, model, generator=torch.Generator())
    output = objective.loss(model, batch, corruption)
    nll = float(output.nll_sum) / int(output.token_count)
    assert reports[0]["eval_nll"] == pytest.approx(nll, rel=1e-5)  # the bound, though the loss weighs uniformly
    assert reports[0]["eval_perplexity"] == pytest.approx(math.exp(nll), rel=1e-5)


def test_it_learns_the_joint(tmp_path):
    """On samples of a small joint the bound comes down to the entropy."""
    joint = random_joint(2, 3, seed=0)
    draws = torch.multinomial(joint.flatten(), 4096, replacement=True, generator=torch.Generator().manual_seed(0))
    examples = [{"input_ids": [i // 4, i // 2 % 2, i % 2]} for i in draws.tolist()]
    args = MDLMConfig(
        output_dir=str(tmp_path),
        max_steps=250,
        per_device_train_batch_size=64,
        per_device_eval_batch_size=512,
        learning_rate=0.02,
        lr_scheduler_type="cosine",
        time_epsilon=0.05,
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = MDLMTrainer(denoiser(), args, train_dataset=examples, eval_dataset=examples)
    before = trainer.evaluate()["eval_nll"]
    trainer.train()
    after = trainer.evaluate()["eval_nll"]
    want = entropy(joint) / 3
    assert before > 1.5 * want
    assert after == pytest.approx(want, rel=0.05)


def test_evaluation_and_what_is_saved_use_the_average(tmp_path):
    """The raw weights train on; evaluation, save_model and the report after training see the averaged ones."""
    options = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 4}
    plain, averaged = (
        DiffusionTrainer(
            denoiser(),
            arguments(tmp_path / str(decay), ema_decay=decay, **options),
            objective=NoiseOfTheRow(),
            train_dataset=ragged_examples(16),
            eval_dataset=ragged_examples(8),
        )
        for decay in (None, 0.5)
    )
    plain.train()
    averaged.train()
    assert torch.equal(weights(plain), weights(averaged))  # training is not touched
    assert averaged.average.updates == 4
    want = plain.evaluate()["eval_nll"], averaged.evaluate()["eval_nll"]
    assert want[0] != want[1]
    assert logged(averaged, "eval_nll")[-1] == want[1]
    with averaged.averaged_weights():
        swapped = weights(averaged)
        again = DiffusionTrainer(
            averaged.denoiser, arguments(tmp_path), objective=NoiseOfTheRow(), eval_dataset=ragged_examples(8)
        )
        assert again.evaluate()["eval_nll"] == want[1]
    averaged.save_model(str(tmp_path / "saved"))
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    stored = load_file(tmp_path / "0.5" / "checkpoint-4" / "model.safetensors")
    names = [name for name, _ in averaged.denoiser.model.named_parameters()]
    assert torch.equal(torch.cat([saved[name].flatten() for name in names]), swapped)
    assert torch.equal(torch.cat([stored[name].flatten() for name in names]), weights(averaged))


def test_optimizer_state_is_saved_by_default(tmp_path):
    assert DiffusionArguments(output_dir=str(tmp_path), use_cpu=True).save_only_model is False
    trainer = DiffusionTrainer(
        denoiser(),
        arguments(tmp_path, save_strategy="steps", save_steps=2),
        objective=NoiseOfTheRow(),
        train_dataset=ragged_examples(16),
    )
    trainer.train()
    state = torch.load(tmp_path / "checkpoint-2" / "optimizer.pt")["state"]
    assert {"exp_avg", "exp_avg_sq", "step"} <= set(state[0])
    assert all(entry["step"] == 2 for entry in state.values())


# ----------------------------------------------------------------------------------------------- what is refused


def refusal(tmp_path, dataset, **options) -> str:
    """The message that training ends with; nothing was trained before."""
    model = denoiser()
    trainer = DiffusionTrainer(model, arguments(tmp_path, **options), objective=MDLMObjective(), train_dataset=dataset)
    before = weights(trainer)
    with pytest.raises((DataError, OptionError)) as caught:
        trainer.train()
    assert trainer.state.global_step == 0
    assert torch.equal(before, weights(trainer))
    return str(caught.value)


class Stream(torch.utils.data.IterableDataset):
    def __init__(self, examples):
        self.examples = examples

    def __iter__(self):
        return iter(self.examples)


ONE, IGNORED = {"input_ids": [1, 2]}, {"input_ids": [1, 2], "labels": [-100, -100]}
LONG = {"input_ids": [1] * (LENGTH + 1)}


@pytest.mark.parametrize(
    "make", [list, Stream, Dataset.from_list, lambda rows: Dataset.from_list(rows).shuffle(seed=0)]
)
def test_data_are_looked_at_before_the_first_step(tmp_path, make):
    seen = 256 if make is Stream else 300
    assert f"none of {seen} training examples has a token to learn" in refusal(tmp_path, make([IGNORED] * 300))
    assert f"{LENGTH + 1} tokens long, the model reads at most {LENGTH}" in refusal(tmp_path, make([ONE] * 9 + [LONG]))


@pytest.mark.parametrize("make", [list, Stream])
def test_no_data_at_all(tmp_path, make):
    assert "hold no example" in refusal(tmp_path, make([]))


def test_evaluation_does_not_fail_hours_later(tmp_path):
    trainer = DiffusionTrainer(
        denoiser(), arguments(tmp_path), objective=MDLMObjective(), train_dataset=[ONE], eval_dataset={"held": [LONG]}
    )
    with pytest.raises(DataError, match="one of the evaluation examples is 7 tokens long, the model reads at most 6"):
        trainer.train()


def test_what_a_filter_left_out_is_not_looked_at(tmp_path):
    kept = Dataset.from_list([ONE] * 20 + [LONG]).filter(lambda row: len(row["input_ids"]) <= LENGTH)
    DiffusionTrainer(denoiser(), arguments(tmp_path), objective=MDLMObjective(), train_dataset=kept).train()


def test_a_few_examples_that_teach_nothing_are_no_error(tmp_path):
    DiffusionTrainer(
        denoiser(), arguments(tmp_path), objective=MDLMObjective(), train_dataset=[IGNORED] * 8 + [ONE] * 8
    ).train()


def test_an_average_needs_whole_weights(tmp_path):
    steps = {"save_strategy": "steps", "eval_strategy": "steps"}
    with pytest.raises(OptionError, match="load_best_model_at_end do not go together"):
        check_average(arguments(tmp_path, ema_decay=0.9, load_best_model_at_end=True, **steps))
    with pytest.raises(OptionError, match=r"ema_decay must lie between 0 and 1, for example 0\.9999; got 1\.0"):
        arguments(tmp_path, ema_decay=1.0)


def test_bad_input_is_refused(tmp_path):
    with pytest.raises(OptionError, match="needs an objective"):
        DiffusionTrainer(denoiser(), arguments(tmp_path))
    with pytest.raises(OptionError, match="takes an MDLMConfig, got DiffusionArguments"):
        MDLMTrainer(denoiser(), arguments(tmp_path))
    with pytest.raises(OptionError, match="use compile=True"):
        arguments(tmp_path, torch_compile=True)
    with pytest.raises(OptionError, match="normalization must be one of"):
        MDLMConfig(output_dir=str(tmp_path), use_cpu=True, normalization="tokens")
    with pytest.raises(OptionError, match="no whole checkpoint in"):
        DiffusionTrainer(denoiser(), arguments(tmp_path), objective=MDLMObjective(), train_dataset=[]).train(
            resume_from_checkpoint=True
        )


def test_config_makes_its_objective(tmp_path):
    args = MDLMConfig(output_dir=str(tmp_path), use_cpu=True, schedule="cosine", time_epsilon=0.1)
    assert MDLMTrainer(denoiser(), args).objective == MDLMObjective(schedule="cosine", time_epsilon=0.1)
    assert get_schedule(args.schedule).alpha(0.0) == pytest.approx(1)


# ---------------------------------------------------------------------------------------------------- the collator


def test_collator_pads_and_ignores():
    batch = DiffusionCollator(pad_token_id=9)([{"input_ids": [1, 2, 3]}, {"input_ids": [4], "labels": [-100]}])
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 9, 9]]
    assert batch["labels"].tolist() == [[1, 2, 3], [-100, -100, -100]]
    assert batch["attention_mask"].tolist() == [[True] * 3, [True, False, False]]
    assert maskable_positions(batch).tolist() == [[True] * 3, [False] * 3]


def test_collator_without_filler_has_no_mask():
    assert "attention_mask" not in DiffusionCollator(pad_token_id=9)([{"input_ids": [1, 2]}, {"input_ids": [3, 4]}])


def test_collator_learns_padding_and_rounds_up():
    collate = DiffusionCollator(pad_token_id=9, learn_padding=True, pad_to_multiple_of=4)
    batch = collate([{"input_ids": [1, 2, 3, 4, 5]}, {"input_ids": torch.tensor([6]), "labels": torch.tensor([-100])}])
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 5, 9, 9, 9], [6] + [9] * 7]
    assert batch["labels"].tolist() == [[1, 2, 3, 4, 5, 9, 9, 9], [-100] + [9] * 7]
    assert "attention_mask" not in batch
    rounded = DiffusionCollator(pad_token_id=9, pad_to_multiple_of=4)([{"input_ids": [1, 2, 3]}])
    assert rounded["attention_mask"].tolist() == [[True, True, True, False]]


def test_collator_refuses_unequal_labels():
    with pytest.raises(DataError, match="example 0 of a batch has 2 input_ids and 1 labels"):
        DiffusionCollator(pad_token_id=0)([{"input_ids": [1, 2], "labels": [1]}])
