"""A prompt once with all its completions: packs, and attention over them."""
