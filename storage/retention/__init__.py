"""What may go: weights that are pruned, and files that no run names."""
