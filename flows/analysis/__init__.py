"""Questions asked of finished rounds: queries, pruning, labels, trained judges, capacity."""
