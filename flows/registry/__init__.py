"""Runs at rest: the catalog, recipes, how a run goes on, what a round leaves."""
