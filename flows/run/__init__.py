"""A run: started, resumed or forked, brought to its rounds, and stopped."""
