"""The date in prompts: the same tomorrow as today."""

from __future__ import annotations

from corral.errors import RenderError
from corral.text.families import FAMILIES
from corral.text.llama3 import Llama3Renderer
from corral.text.messages import Message
from corral.text.rendered import Renderer, RenderOptions

FIXED_DATE = FAMILIES["llama-3.1"].template_date
"""What the published templates of Llama 3 fall back to where they cannot ask for the time."""

_PROBE = (Message("user", "hello"),)


def fixed_date(renderer: Renderer | None) -> str | None:
    """The date to render with, where a prompt format would write the day of rendering; else None.

    The template of Llama 3.2 writes the day of rendering: the same data would give other tokens tomorrow, and
    a run could not be resumed.
    """
    if isinstance(renderer, Llama3Renderer):
        writes_today = renderer.family.tools and renderer.family.template_date is None
        return FIXED_DATE if writes_today else None
    if renderer is None or not any("strftime_now" in text for text in getattr(renderer, "sources", ())):
        return None
    try:
        renderer.render(_PROBE, (), RenderOptions(date=FIXED_DATE))
    except RenderError:  # it has no place for a date that is given
        return None
    return FIXED_DATE
