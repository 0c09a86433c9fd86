"""Which address is answered by which page, a file for each family of pages."""
