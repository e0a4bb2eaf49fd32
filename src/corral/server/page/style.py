"""The page's colours and fonts; what they do not reach is in page.css."""

from __future__ import annotations

from typing import Any

import gradio as gr

_FONT = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "sans-serif")
_MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace")


def theme() -> Any:
    """A quiet theme on warm grey, with fonts that every machine has: nothing is fetched from elsewhere."""
    base = gr.themes.Base(
        primary_hue=gr.themes.colors.orange,
        secondary_hue=gr.themes.colors.stone,
        neutral_hue=gr.themes.colors.stone,
        radius_size=gr.themes.sizes.radius_lg,
        font=_FONT,
        font_mono=_MONO,
    )
    return base.set(
        body_background_fill="#fdfcfa",
        body_background_fill_dark="#191715",
        background_fill_primary="#ffffff",
        background_fill_primary_dark="#211f1c",
        background_fill_secondary="#f6f3ee",
        background_fill_secondary_dark="#1f1d1a",
        block_background_fill="transparent",
        block_background_fill_dark="transparent",
        block_border_width="0px",
        block_border_width_dark="0px",
        border_color_primary="#e7e2da",
        border_color_primary_dark="#38342f",
        input_background_fill="#ffffff",
        input_background_fill_dark="#26231f",
        input_border_width="1px",
        button_primary_background_fill="#b8562b",
        button_primary_background_fill_dark="#c2612f",
        button_primary_background_fill_hover="#a34921",
        button_primary_background_fill_hover_dark="#d26f3b",
        button_primary_text_color="#ffffff",
        button_secondary_background_fill="transparent",
        button_secondary_background_fill_dark="transparent",
        button_secondary_background_fill_hover="#efeae2",
        button_secondary_background_fill_hover_dark="#2e2a26",
        button_secondary_border_color="#ddd6cb",
        button_secondary_border_color_dark="#3d3832",
        slider_color="#b8562b",
        slider_color_dark="#d0703c",
        color_accent="#b8562b",
        link_text_color="#a34921",
        link_text_color_dark="#e39066",
    )
