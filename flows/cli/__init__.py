"""The command line: typer commands and terminal tables, and nothing else."""
