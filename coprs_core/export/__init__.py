"""Save answers: as files that can be opened again, and as an animated picture."""
