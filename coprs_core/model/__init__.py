"""The paper's figure, one file a box: language model, image encoder, positional prior, mask
decoder."""
