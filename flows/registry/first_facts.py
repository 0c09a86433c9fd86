"""What a run keeps to since its first round: the precision of its samples, and the marks around thoughts.

Both follow from where a run begins, its processor and its policy's tokenizer, and not from its recipe alone. Round 0's
checkpoint records them. So a run that goes on on another machine mixes nothing within a round.
"""

from typing import Any

from flows.registry.resume import recipe_of
from pipeline.config.sampling import Precision, ThoughtMarks
from storage.log.run import Run
from storage.log.store import Store


def sampled_in(store: Store, run: Run) -> Precision | None:
    """Returns the precision that a run samples in since its first round; None if it has not begun.

    A fork has that of its parent, unless its own recipe, as it was made, names another one. Its round 0 is that of the
    first of its forebears, and says nothing of those in between. Version 0.1.0 recorded none, and knew no ``auto``:
    there the recipe of the run says it.
    """
    asked, parent = recipe_of(run).sampler_precision, run.header.get("parent")
    if parent is not None:
        return sampled_in(store, store.run(parent["run"], intact_part=True)) if asked == "auto" else asked
    facts = _facts(run)
    if facts is None:
        return None
    recorded = facts.get("sampler_precision")
    if recorded is not None:
        return "bfloat16" if recorded == "bfloat16" else "float32"
    return "float32" if asked == "auto" else asked


def thoughts_between(run: Run, given: ThoughtMarks | None) -> ThoughtMarks | None:
    """Returns the marks around the thoughts of a run's policies; None if they do not think.

    Args:
        given: by the recipe, before those that round 0 found. A run of version 0.1.0 looked for none, and has none.
    """
    recorded = (_facts(run) or {}).get("thought")
    return given if given is not None or recorded is None else ThoughtMarks.model_validate(recorded)


def _facts(run: Run) -> dict[str, Any] | None:
    made = run.entries(0, "checkpoint")
    return made[-1].meta if made else None
