"""`dllm plugins check`: run the conformance suite on an installed plugin and report in words."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import click

from dllm_core import __version__
from dllm_core.cli.output import working
from dllm_core.plugins import PluginRecord

if TYPE_CHECKING:
    from dllm_core.conformance.runner import Group, Outcome

    Report = tuple[Group, list[Outcome]]

COLOURS = {"passed": "green", "failed": "red", "error": "red", "skipped": "yellow"}
WIDEST = 100
DEFAULTS = "checked with default capabilities; declare others in the package's module 'conformance'"


def check(record: PluginRecord, *, as_json: bool) -> bool:
    """Run everything that applies to one plugin and print the report. -> whether nothing failed

    Raises:
        ComponentLoadError: the plugin's own test classes do not import.
    """
    with working(f"loading the checks of {record.name}"):
        from dllm_core.conformance.runner import groups_of, run  # imports torch

        groups = groups_of(record)
    width = min(shutil.get_terminal_size((80, 24)).columns, WIDEST)
    if not as_json:
        click.echo(f"{click.style(record.name, bold=True)}  {record.distribution} {record.version}, ", nl=False)
        click.echo(f"checked by dllm-core {__version__}\n")
    reports: list[Report] = []
    for group in groups:
        with working(f"checking {group.kind} {group.subject}"):
            outcomes = list(run(group.suite)) if group.suite is not None else []
        reports.append((group, outcomes))
        if not as_json:
            click.echo("\n".join(summary(group, outcomes, width)))
    click.echo(json.dumps(as_data(record, reports), indent=2) if as_json else "\n".join(conclusion(reports, width)))
    return not any(bad(outcome) for _, outcomes in reports for outcome in outcomes)


def bad(outcome: Outcome) -> bool:
    return outcome.state in ("failed", "error")


def summary(group: Group, outcomes: Sequence[Outcome], width: int) -> Iterator[str]:
    """A line for each component, and below it why checks were left out."""
    name = f"{group.kind} {group.subject}"
    if group.suite is None:
        yield f"{name}  {click.style('not checked', fg='yellow')}"
        yield from paragraph(group.reason or "", width)
        return
    facts = [counts(outcomes), *(note for outcome in outcomes for note in outcome.notes)]
    facts.append(f"{sum(outcome.seconds for outcome in outcomes):.1f} s")
    yield f"{click.style(name, bold=True)}  {', '.join(facts)}"
    for reason, names in skips(outcomes).items():
        yield from paragraph(f"skipped, {reason}: {', '.join(names)}", width)
    for outcome in filter(bad, outcomes):
        yield f"  {click.style(outcome.state, fg='red')}  {in_words(outcome.check)}"
    if not group.declared and group.kind != "plugin":
        yield from paragraph(DEFAULTS, width)


def counts(outcomes: Sequence[Outcome]) -> str:
    """``17 passed, 1 skipped``, coloured."""
    found = Counter(outcome.state for outcome in outcomes)
    names = [state for state in COLOURS if found[state]]
    return ", ".join(click.style(f"{found[state]} {state}", fg=COLOURS[state]) for state in names)


def skips(outcomes: Sequence[Outcome]) -> dict[str, list[str]]:
    """Reason -> the checks that were skipped for it."""
    found: dict[str, list[str]] = {}
    for outcome in outcomes:
        if outcome.state == "skipped":
            found.setdefault(outcome.message or "no reason given", []).append(in_words(outcome.check))
    return found


def conclusion(reports: Sequence[Report], width: int) -> Iterator[str]:
    """Each failure with what it means and how to mend it, then the totals."""
    everything = [outcome for _, outcomes in reports for outcome in outcomes]
    for group, outcomes in reports:
        for outcome in filter(bad, outcomes):
            yield ""
            yield click.style(f"{group.kind} {group.subject}: {in_words(outcome.check)}", bold=True)
            yield from explanation(outcome, width)
    unchecked = sum(group.suite is None for group, _ in reports)
    also = f", {unchecked} not checked" if unchecked else ""
    yield f"\n{counts(everything)}{also} in {sum(outcome.seconds for outcome in everything):.1f} s"


def explanation(outcome: Outcome, width: int) -> Iterator[str]:
    """What was found, what the check guards, why, and how to mend it."""
    doc = outcome.doc
    facts = {"found": outcome.message, "guards": doc.guards, "why": doc.why, "mend": doc.mend}
    for name, text in facts.items():
        if text:
            yield from paragraph(text.replace("``", "`"), width, name)
    if outcome.traceback:
        yield textwrap.indent(outcome.traceback.rstrip(), "  ")


def paragraph(text: str, width: int, name: str = "") -> Iterator[str]:
    """Indented lines of at most `width`, hanging behind a name."""
    head = f"  {name:<8}" if name else "  "
    yield from textwrap.wrap(
        text,
        width,
        initial_indent=head,
        subsequent_indent=" " * len(head),
        break_long_words=False,
        break_on_hyphens=False,
    )


def in_words(check: str) -> str:
    """``test_no_mask_is_left`` -> ``no mask is left``."""
    return check.removeprefix("test_").replace("_", " ")


def as_data(record: PluginRecord, reports: Sequence[Report]) -> dict[str, object]:
    """The whole report as JSON data."""
    found = Counter(outcome.state for _, outcomes in reports for outcome in outcomes)
    return {
        "plugin": record.name,
        "distribution": record.distribution,
        "version": record.version,
        "core": __version__,
        "ok": not (found["failed"] or found["error"]),
        "counts": {state: found[state] for state in COLOURS},
        "components": [component_data(group, outcomes) for group, outcomes in reports],
    }


def component_data(group: Group, outcomes: Sequence[Outcome]) -> dict[str, object]:
    return {
        "kind": group.kind,
        "id": group.subject,
        "declared": group.declared,
        "not_checked": group.reason,
        "checks": [
            {
                "name": outcome.check,
                "state": outcome.state,
                "seconds": round(outcome.seconds, 4),
                "message": outcome.message,
                "notes": list(outcome.notes),
                "guards": outcome.doc.guards,
                "why": outcome.doc.why,
                "mend": outcome.doc.mend,
                "traceback": outcome.traceback,
            }
            for outcome in outcomes
        ],
    }
