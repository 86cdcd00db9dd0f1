"""Training of the method. Inference never imports this."""
