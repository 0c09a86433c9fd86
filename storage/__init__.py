"""Runs, rounds, stages, shards, and the files that they name, in versions. Knows no tensor, no scheduler, no pipeline.

Nor does it know what a stage means, or which commands there are: its callers say so by arguments, or in the tables of
``storage/errors.py``.

Rooms, from the ground up: objects (bytes under names), log (entries, runs, the one writer), tables (what entries name),
verify and queries (what is damaged; questions about the data), retention (what may go).
"""
