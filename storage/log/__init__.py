"""A run's append-only log: its entries, its one writer at a time, and what was read of it."""
