"""Where pipeline and storage meet: flows, worker processes, the command line and the report."""
