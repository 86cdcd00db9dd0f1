"""Colours and type of the page, as Gradio takes them; the rest stands in static/style.css."""

import gradio as gr


def theme() -> gr.themes.Base:
    """Our own colours and type: warm paper and ink, with the heatmap's violet and orange as
    accents. No web fonts."""
    return gr.themes.Base(
        primary_hue=gr.themes.colors.orange,
        neutral_hue=gr.themes.colors.stone,
        font=[
            "Inter",
            "system-ui",
            "-apple-system",
            "Segoe UI",
            "Noto Sans",
            "Noto Sans CJK SC",
            "sans-serif",
        ],
        font_mono=["ui-monospace", "SFMono-Regular", "Menlo", "monospace"],
        radius_size=gr.themes.sizes.radius_md,
        spacing_size=gr.themes.sizes.spacing_sm,
    ).set(
        body_background_fill="#faf8f4",
        body_background_fill_dark="#151217",
        block_background_fill="#ffffff",
        block_background_fill_dark="#1e1a22",
        block_border_width="1px",
        block_border_color="#e7e1d8",
        block_border_color_dark="#372f3f",
        button_primary_background_fill="#5b1a6b",
        button_primary_background_fill_hover="#74248a",
        button_primary_background_fill_dark="#8a3aa3",
        button_primary_background_fill_hover_dark="#a04fba",
        input_placeholder_color="#645a6b",
        input_placeholder_color_dark="#b9aec0",
        button_primary_text_color="#ffffff",
        button_primary_text_color_dark="#ffffff",
    )
