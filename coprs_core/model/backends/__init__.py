"""What the figure stands on: language models, their decoding and attention, SAM as published,
and models that write coordinates."""
