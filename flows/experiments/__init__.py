"""Experiments: arms of one recipe at the same budget of samples, run over seeds, measured and drawn together."""
