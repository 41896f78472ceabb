"""How the page looks: gradio's theme with quieter labels, and a style sheet. Nothing is fetched from elsewhere."""

from pathlib import Path

import gradio as gr

CSS = Path(__file__).with_name("page.css")
FONT = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")  # nothing is fetched
THEME = gr.themes.Soft(
    primary_hue="teal", neutral_hue="slate", font=FONT, font_mono=("ui-monospace", "Menlo", "Consolas", "monospace")
).set(
    block_title_background_fill="none",
    block_title_background_fill_dark="none",
    block_title_text_color="*body_text_color",
    block_title_text_color_dark="*body_text_color",
    block_title_padding="0",
    block_label_background_fill="*background_fill_primary",
    block_label_background_fill_dark="*background_fill_primary",
    block_label_text_color="*body_text_color",
    block_label_text_color_dark="*body_text_color",
    button_primary_background_fill="*primary_700",
    button_primary_background_fill_hover="*primary_800",
    button_primary_background_fill_dark="*primary_700",
    button_primary_background_fill_hover_dark="*primary_600",
    block_border_width="1px",
    block_border_width_dark="1px",
    input_border_width="1px",
    checkbox_label_border_width="1px",
    checkbox_label_background_fill_selected="*primary_700",
    checkbox_label_background_fill_selected_dark="*primary_700",
    body_text_color_subdued="*neutral_600",
    body_text_color_subdued_dark="*neutral_400",
)
