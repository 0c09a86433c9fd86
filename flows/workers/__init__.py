"""The three workers of a run: plain classes over pipeline and storage. They import no other folder of flows."""
