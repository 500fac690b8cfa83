"""`dllm merge`: one checkpoint of whole weights from a base and its LoRA adapter."""

from __future__ import annotations

import json
from pathlib import Path

import click

from dllm_core.cli.completing import dtypes
from dllm_core.cli.output import loading

EPILOG = """\b
Examples:
  dllm merge OWNER/MODEL my-adapter my-model
  dllm merge FOLDER my-adapter my-half-model --dtype bfloat16
"""


@click.command("merge", epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("base")
@click.argument("adapter")
@click.argument("output", type=click.Path(path_type=Path))
@click.option(
    "--dtype",
    shell_complete=dtypes,
    default="auto",
    show_default="the base's own",
    help="float32, bfloat16 or float16.",
)
@click.option("--revision", help="Branch, tag or commit of a BASE on the hub.")
@click.option("--json", "as_json", is_flag=True, help="Report the result as JSON.")
def command(base: str, adapter: str, output: Path, dtype: str, revision: str | None, as_json: bool) -> None:
    """Merge the LoRA adapter in folder ADAPTER into the whole weights of BASE, and write the model to OUTPUT.

    The merged model computes what the base with its adapter does, and needs no peft. OUTPUT appears only once it is
    whole. An adapter that was trained on 4-bit weights is merged into the whole ones.
    """
    with loading("Merging"):
        from dllm_core.models.merging import merge_checkpoint

        merge_checkpoint(base, adapter, output, dtype=dtype, revision=revision)
    click.echo(json.dumps({"output": str(output)}) if as_json else f"Merged model in {output}")
