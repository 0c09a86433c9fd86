"""Bytes under names: put-if-absent on any backend, durable writes to a disk, and where each thing lies."""
