"""The page that looks into runs, ``rondo view``: it reads the store and nothing else, and writes labels alone."""
