"""How the miniature is made, from nothing."""
