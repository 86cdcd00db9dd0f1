"""From whatever a person brings to an upright RGB photo."""
