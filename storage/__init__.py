"""Bytes, Arrow tables and versions: shards, manifests, checkpoints, lineage, inspection.

Reading order: errors, layout and manifest (names and records), objects (put-if-absent on any backend), log (the
protocol), store and run (what callers use), shards and checkpoints (the data), inspect, across
and sql (questions about the data, over columns and duck);
releases, retention and sweep (what is removed), inputs and verify (what is damaged), lineage (what came from what).
"""
