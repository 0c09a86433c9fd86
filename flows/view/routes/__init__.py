"""The addresses of the pages, a file for each that needs more than a line."""
