"""Numbers in addresses."""

MOST = 2**31 - 1
"""The largest number that the tables hold in their columns of rounds and candidates."""
