"""Everything that talks to Prefect's server: settings, limits, control."""
