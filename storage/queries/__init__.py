"""Questions about committed tables, asked of DuckDB: of one round, of a run, in SQL; and what came from what."""
