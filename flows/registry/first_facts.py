"""What a run keeps to since its first round: the precision of its samples, and the marks around thoughts.

Both follow from where a run begins, its processor and its policy's tokenizer, and not from its recipe alone. Round 0's
checkpoint records them. So a run that goes on on another machine mixes nothing within a round.
"""

from typing import Any

from flows.registry.resume import recipe_of
from pipeline.config.sampling import Precision, ThoughtMarks
from storage.log.forebears import forebears
from storage.log.run import Run
from storage.log.store import Store
from storage.log.tombstones import parent_of


def sampled_in(store: Store, run: Run) -> Precision | None:
    """Returns the precision that a run samples in since its first round; None if it has not begun.

    A fork has that of its parent, unless its own recipe, as it was made, names another one. Its round 0 is that of the
    first of its forebears, and says nothing of those in between. Version 0.1.0 recorded none, and knew no ``auto``:
    there the recipe of the run says it.
    """
    for other in forebears(store, run):
        asked, first = recipe_of(other).sampler_precision, other
        if parent_of(other.header) is not None and asked != "auto":
            return asked
    facts = _facts(first)
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
