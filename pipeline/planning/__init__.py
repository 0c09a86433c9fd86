"""A round on paper: time, memory, store and money of a recipe, by arithmetic; ``docs/capacity.md`` explains it."""
