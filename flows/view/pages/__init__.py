"""The pages, a file for each: what it asks of a run, and what its template is given."""
