"""Preferences: judgments become pairs or rankings, and every prompt without one keeps the reason. Pure functions."""

from pipeline.preferences.build import build_preferences, drop_counts, preference_count
from pipeline.preferences.candidates import REASONS
from pipeline.preferences.order import soft_label
from pipeline.preferences.replay import choose_replayed, describe_replayed, replayed_table

__all__ = [
    "REASONS",
    "build_preferences",
    "choose_replayed",
    "describe_replayed",
    "drop_counts",
    "preference_count",
    "replayed_table",
    "soft_label",
]
