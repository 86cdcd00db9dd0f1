"""The app: views (what is found → HTML) and handlers (updates → component values) → tabs and ui
(gradio)."""
