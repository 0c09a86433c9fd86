"""The three workers of a run: plain classes, each at home in a process of its own (``flows/process.py``)."""
