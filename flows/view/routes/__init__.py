"""The routes of pages that take more than an address, a file for each."""
