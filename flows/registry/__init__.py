"""Runs at rest: the catalog, recipes, how a run goes on, what a round leaves."""

DEFAULT_ROOT = "runs"
"""Where runs are kept if nobody says otherwise. It stands here so that the command line starts without the store."""
