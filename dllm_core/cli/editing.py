"""What `dllm edit` does once its arguments are known to be right: load, edit before people's eyes, report."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.text import Text

from dllm_core.cli.edit import EditArguments, relative_name
from dllm_core.cli.errors import fitted
from dllm_core.cli.output import whole_file, working
from dllm_core.cli.run import SamplerChoice, load_model
from dllm_core.data.formats import instruction_turns
from dllm_core.display.edit_view import EditView, heat_text
from dllm_core.display.text import glyphs_for
from dllm_core.editing import Edited, EditSession, Layout, Span, lay_out, tokenized, unified_diff, write_log
from dllm_core.editing.distance import edit_distance
from dllm_core.editing.draft import line_of, line_starts, shown_to_models
from dllm_core.editing.window import window_of
from dllm_core.errors import PromptError

if TYPE_CHECKING:
    from dllm_core.models.denoiser import Denoiser

MOST_LINES = 10  # that the map names


def run_edit(
    arguments: EditArguments,
    text: str,
    regions: Sequence[Span],
    protected: Sequence[Span],
    *,
    model: str,
    sampler: str,
    options: Mapping[str, object],
    live: bool,
) -> None:
    """Edit a text and report what came of it."""
    log_file = nullcontext() if arguments.log is None else whole_file(arguments.log, "--log")
    with log_file as log:
        generation = load_model(
            model, SamplerChoice(sampler, is_final=True), dict(options), device=arguments.device, dtype=arguments.dtype
        )
        layout = laid_out(
            generation.denoiser, text, regions, protected, arguments.instruction, named=bool(arguments.lines)
        )
        say_window(layout, text)
        session = EditSession(generation.sampler, layout, generation.about | {"file": str(arguments.file)})
        with EditView(Console(stderr=True), session) if live else working("Editing") as view:
            while not session.finished:
                session.step()
                if live:
                    view.show()
        edited = session.finish()
        if log is not None:
            write_log(edited.log, log)
    report(arguments, text, edited.text, session, edited)


def show_suspicion(
    arguments: EditArguments,
    text: str,
    regions: Sequence[Span],
    protected: Sequence[Span],
    *,
    model: str,
    sampler: str,
    options: Mapping[str, object],
    live: bool,
) -> None:
    """Show where the model would edit, from one pass."""
    generation = load_model(
        model, SamplerChoice(sampler, is_final=True), dict(options), device=arguments.device, dtype=arguments.dtype
    )
    layout = laid_out(generation.denoiser, text, regions, protected, arguments.instruction, named=bool(arguments.lines))
    say_window(layout, text)
    rates = generation.sampler.suspicion([layout.row], [layout.all_locked], [layout.gaps])[0]  # (L, 3)
    rates = rates[len(layout.prefix) :]
    map_ = suspicions(layout, rates)
    if arguments.form == "json":
        print(json.dumps({"file": str(arguments.file), "expected_edits": float(rates.sum()), "tokens": map_}))
        return
    console = Console(highlight=False, markup=False)
    highest = [max(each["change"], each["insert"]) for each in map_]
    console.print(heat_text(layout.draft.text, layout.draft.spans, highest, console.encoding), end="")
    for line, rate in worst_lines(map_):
        console.print(Text(f"line {line}: {rate:.2f}", "dim"))
    console.print(Text(f"{float(rates.sum()):.1f} edits expected", "dim"))


def suspicions(layout: Layout, rates: torch.Tensor) -> list[dict[str, Any]]:
    """For each token: its text, its line, and the rates of changing it and of inserting behind it."""
    starts, found = line_starts(layout.text), []
    for span, (substitute, delete, insert) in zip(layout.draft.spans, rates.tolist(), strict=True):
        start = span.start + layout.offset
        found.append(
            {
                "text": layout.draft.text[span.start : span.stop],
                "start": start,
                "line": line_of(starts, start),
                "change": round(substitute + delete, 4),
                "insert": round(insert, 4),
            }
        )
    return found


def worst_lines(map_: Sequence[Mapping[str, Any]]) -> list[tuple[int, float]]:
    """The lines with the highest rates, the highest first."""
    highest: dict[int, float] = {}
    for each in map_:
        highest[each["line"]] = max(highest.get(each["line"], 0.0), each["change"], each["insert"])
    ranked = sorted(highest.items(), key=lambda pair: -pair[1])
    return [pair for pair in ranked if pair[1] >= 0.1][:MOST_LINES]


def laid_out(
    denoiser: Denoiser,
    text: str,
    regions: Sequence[Span],
    protected: Sequence[Span],
    instruction: str | None,
    *,
    named: bool,
) -> Layout:
    """What the model is given: the instruction, and the text or as many of its lines as it can read.

    Args:
        named: the regions were asked for; otherwise they are the whole text.

    Raises:
        PromptError: no tokenizer, no chat template for an instruction, or lines that do not fit the context.
    """
    if denoiser.tokenizer is None:
        raise PromptError("this checkpoint has no tokenizer, so it cannot edit a text; save it with one")
    prefix = prefix_of(denoiser, shown_to_models(text), instruction)
    draft = tokenized(text, denoiser.tokenizer)
    if denoiser.mask_token_id in draft.ids:
        raise PromptError("the file holds the model's mask token; take it out, or have it filled: dllm run --infill")
    room = denoiser.context_length
    if room is None or len(prefix) + len(draft.ids) <= room:
        return lay_out(prefix, draft, regions, protected, window=Span(0, len(text)))
    taken = len(prefix_of(denoiser, "", instruction))
    if instruction is not None:
        room = taken + (room - taken) // 2  # the text that the model sees stands in the instruction as well
    window = window_of(draft, regions if named else (), taken=taken, context=room)
    prefix = prefix_of(denoiser, shown_to_models(text[slice(*window)]), instruction)
    return lay_out(prefix, draft, regions, protected, window=window)


def prefix_of(denoiser: Denoiser, text: str, instruction: str | None) -> list[int]:
    """The tokens in front of the text: a chat whose answer the text is, or the beginning of sequence.

    Raises:
        PromptError: an instruction for a tokenizer without a chat template.
    """
    tokenizer = denoiser.tokenizer
    if instruction is None:
        start = denoiser.bos_token_id if denoiser.bos_token_id is not None else tokenizer.cls_token_id
        return [] if start is None else [start]
    if tokenizer.chat_template is None:
        raise PromptError("--instruction is a chat message, and this tokenizer has no chat template; leave it out")
    turns = instruction_turns(instruction, text)
    return tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)


def say_window(layout: Layout, text: str) -> None:
    """Say which lines the model sees, where it is not all of them."""
    seen = Span(layout.offset, layout.offset + len(layout.draft.text))
    if len(layout.draft.text) == len(text):
        return
    starts = line_starts(text)
    lines = f"{line_of(starts, seen.start)}:{line_of(starts, seen.stop - 1)}"
    said = f"the file is longer than the model's context: it sees lines {lines} of {len(starts)}, and edits only there"
    print(fitted(said, sys.stderr), file=sys.stderr)


def report(
    arguments: EditArguments,
    before: str,
    after: str,
    session: EditSession | None = None,
    edited: Edited | None = None,
) -> None:
    """Write the file where that is asked for, and print the patch, the text, or JSON."""
    patch = unified_diff(before, after, relative_name(arguments.file))
    if arguments.write and after != before:
        target = arguments.file.resolve()  # what a link points to, not the link
        mode = target.stat().st_mode
        with whole_file(target, "FILE") as file:
            file.write(after.encode())
        target.chmod(mode)
    facts = figures(before, after, session, edited)
    if arguments.form == "json":
        record = {"file": str(arguments.file), "text": after, "patch": patch, "written": arguments.write, **facts}
        print(json.dumps(record, ensure_ascii=False))
        return
    out = after if arguments.form == "file" else patch
    if sys.stdout.isatty() and arguments.form == "patch":
        Console(soft_wrap=True, highlight=False, markup=False).print(coloured(patch), end="")
    else:
        sys.stdout.flush()
        sys.stdout.buffer.write(out.encode())
        sys.stdout.buffer.flush()
    say_figures(facts, arguments)


def figures(before: str, after: str, session: EditSession | None, edited: Edited | None) -> dict[str, Any]:
    """What is counted; without a model only whether the text has changed."""
    if session is None or edited is None:
        return {"changed": after != before}
    needed = edit_distance(session.layout.draft.ids, [piece.token for piece in session.pieces])
    made = len(edited.log.edits)
    kept = sum(not piece.is_new for piece in session.pieces)
    return {
        "changed": after != before,
        "edits": made,
        "net_edits": needed,
        "churn": round(made / needed, 3) if needed else (0.0 if not made else float(made)),
        "tokens_kept": kept,
        "unchanged_outside": 1.0,  # all bytes outside the lines to edit: anything else is an error
        "log": [vars(edit) for edit in edited.log.edits],
        "stats": edited.stats.as_dict(),
    }


def say_figures(facts: Mapping[str, Any], arguments: EditArguments) -> None:
    """A line beside the result, for people."""
    console = Console(stderr=True, highlight=False, markup=False)
    if not console.is_terminal:
        return
    if not facts["changed"]:
        console.print(Text("nothing to change", "dim"))
    if "edits" not in facts:
        return
    parts = [
        f"{facts['edits']} edits ({facts['net_edits']} net, churn {facts['churn']:.2f})",
        "outside 100% unchanged",
        f"{facts['stats']['forward_passes']} forward passes",
        f"{facts['stats']['seconds']:.2f} s",
        *([f"{arguments.file} written"] if arguments.write and facts["changed"] else []),
    ]
    console.print(Text(glyphs_for(console.encoding).separator.join(parts), "dim"))


def coloured(patch: str) -> Text:
    """A patch in the colours that git shows it in."""
    text = Text()
    for line in patch.splitlines(keepends=True):
        style = {"+": "green", "-": "red", "@": "cyan"}.get(line[:1], "")
        text.append(line, "bold" if line.startswith(("+++", "---")) else style)
    return text
