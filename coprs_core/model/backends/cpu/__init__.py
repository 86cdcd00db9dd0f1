"""What makes a model fast and small without a GPU: `optimize` applies it and undoes it."""
