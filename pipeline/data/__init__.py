"""What goes in: prompts, and the corpora that the toy recipes generate."""
