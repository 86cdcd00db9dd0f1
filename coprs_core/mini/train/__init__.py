"""How the miniature is made, from scratch."""
