"""What makes a model quick and small without a GPU: `optimize` puts it on and takes it off."""
