"""What a model is given: pictures to pixels, messages to a prompt, text to token ids. Needs no torch."""
