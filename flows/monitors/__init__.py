"""Who is told while a run goes on: trackers, people, Prefect's artifacts."""
