"""A policy on disk and in memory, its log-probabilities, adapters, several ranks."""
