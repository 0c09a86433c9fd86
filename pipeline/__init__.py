"""The science of a round: records, sampling, judges, preferences, the DPO update and its evaluation.

Nothing here knows a path layout, a store or a scheduler.
"""
