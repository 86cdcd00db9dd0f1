"""The app: panels (updates → HTML) and handlers (updates → component values) → ui (gradio)."""
