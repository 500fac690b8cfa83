"""`dllm convert`: a diffusion model from a checkpoint of another kind."""

from __future__ import annotations

import json
from pathlib import Path

import click

from dllm_core.cli.completing import dtypes
from dllm_core.cli.output import loading

EPILOG = """\b
Examples:
  dllm convert OWNER/MODEL my-model --to a2d
  dllm convert my-causal-model my-shifted-model --to a2d --shift --dtype bfloat16
"""


@click.command("convert", epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model")
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--to", required=True, metavar="NAME", help="Plugin that converts, or one of its adapters.")
@click.option(
    "--shift/--no-shift",
    default=False,
    show_default=True,
    help="Let each row of the logits score the next token, as in the causal model, or its own.",
)
@click.option(
    "--dtype",
    shell_complete=dtypes,
    default="auto",
    show_default="the model's own",
    help="float32, bfloat16 or float16.",
)
@click.option("--revision", help="Branch, tag or commit of a MODEL on the hub.")
@click.option("--json", "as_json", is_flag=True, help="Report the result as JSON.")
def command(model: str, output: Path, to: str, shift: bool, dtype: str, revision: str | None, as_json: bool) -> None:
    """Convert MODEL, a folder or hub id, into a diffusion model in the new folder OUTPUT.

    OUTPUT appears only once it is whole. No code of the checkpoint is run. The converted model writes text only once it
    was trained as a diffusion model (dllm train).
    """
    with loading("Converting"):
        from dllm_core.models.converting import convert_checkpoint

        converted = convert_checkpoint(model, output, to=to, dtype=dtype, logits_are_shifted=shift, revision=revision)
    if as_json:
        click.echo(json.dumps({"output": str(output), "notes": converted.notes}))
        return
    for note in converted.notes:
        click.echo(note, err=True)
    click.echo(f"Converted model in {output}")
