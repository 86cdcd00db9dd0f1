"""The world that the miniature learns from: picture-book scenes, and instructions about them."""
