"""What makes a model quick and small without a GPU."""
