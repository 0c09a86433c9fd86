"""Bytes under names: put-if-absent on any backend, what reaches the disk for good, and where each thing lies."""
