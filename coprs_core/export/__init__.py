"""Answers that leave: as files to take away and open again, and as an animated picture."""
