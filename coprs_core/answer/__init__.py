"""Answers: the engine that gives them, the result, its warnings, its diagnosis, comparisons and
pictures."""
