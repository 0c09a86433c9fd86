"""One round, from its prompts to its checkpoint. Start reading at round.py."""
