"""Preferences: judgments become pairs or rankings, and every prompt without one keeps the reason. Pure functions."""

from pipeline.preferences.build import build_preferences, drop_counts
from pipeline.preferences.candidates import REASONS
from pipeline.preferences.order import soft_label

__all__ = ["REASONS", "build_preferences", "drop_counts", "soft_label"]
