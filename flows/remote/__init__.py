"""Workers elsewhere: in a process, in ranks of several, on Ray; and typed calls to them."""
