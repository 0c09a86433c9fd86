"""What Prefect's runner does when a scheduled run is due.

python -m support.scheduled RECIPE RUN ROOT ROUNDS
"""

import asyncio
import sys
from pathlib import Path

import flows.prefect_api  # noqa: F401  before Prefect
from flows.registry.recipes import load_recipe
from flows.schedule.scheduled_rounds import add_rounds


def main() -> None:
    """Adds the rounds."""
    path, run, root, rounds = sys.argv[1:]
    recipe = load_recipe(Path(path)).model_dump(mode="json")
    asyncio.run(add_rounds(recipe=recipe, run=run, root=root, rounds=int(rounds)))
