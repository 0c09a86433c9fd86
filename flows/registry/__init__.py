"""Runs at rest: the catalog, recipes, how a run goes on, what a round leaves."""

DEFAULT_ROOT = "runs"
"""Where runs are kept by default. It stands here so that the command line starts without the store."""
