"""A trace as one HTML page that needs nothing beside itself: no network, no server, no library."""

from __future__ import annotations

import json
import math
from importlib.resources import files

from dllm_core.display.trace import Change, Trace

MARK = "@TRACE@"


def page(trace: Trace) -> str:
    """The page: a scrubber, play, decoding order and confidence as colours, and for each token when it was written."""
    data = {
        "about": {name: trace.about.get(name) for name in ("model", "sampler", "seed")},
        "mask_id": trace.mask_id,
        "special_ids": trace.special_ids,
        "vocabulary": trace.vocabulary,
        "rows": [
            {
                "caption": row.caption,
                "start": row.start,
                "steps": row.steps,
                "ids": row.ids,
                "pieces": row.pieces,
                "changes": [change_data(change) for change in trace.changes(number)],
            }
            for number, row in enumerate(trace.rows)
        ],
    }
    # "<" only ever stands inside strings, where the escape means the same; so no text can end the script element.
    encoded = json.dumps(data, allow_nan=False, separators=(",", ":"), default=str).replace("<", "\\u003c")
    template = files("dllm_core.display").joinpath("page.html").read_text(encoding="utf-8")
    return template.replace(MARK, encoded)


def change_data(change: Change) -> dict[str, object]:
    """A change for JSON, which knows no nan."""
    return {
        "step": change.step,
        "block": change.block,
        "positions": change.positions,
        "tokens": change.tokens,
        "confidence": [None if not math.isfinite(value) else round(value, 4) for value in change.confidence],
        "length": change.length,
        "inserted": change.inserted,
        "deleted": change.deleted,
    }
