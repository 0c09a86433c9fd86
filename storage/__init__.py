"""Bytes, Arrow tables and versions. Knows no tensor, no scheduler, no pipeline.

Rooms, from the ground up: objects (bytes under names), log (entries, runs, the one writer), tables (what entries name),
verify and queries (what is damaged; questions about the data), retention (what may go).
"""
