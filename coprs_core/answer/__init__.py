"""What an answer is and how it comes about: the engine, the result, its flags, comparisons and
pictures."""
