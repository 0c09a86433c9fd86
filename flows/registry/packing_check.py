"""What the check of packing before all work has left open, as round 0's checkpoint records it."""

from storage.log.run import Run


def untried_lengths(run: Run) -> str | None:
    """Says in a sentence at which lengths the check of packing compared nothing; None if there are none.

    From such a length on, a model may treat sequences, or packs, differently; see ``pipeline/model/check.py``.
    """
    lengths = [name for entry in run.entries(0, "checkpoint")[-1:] for name in entry.meta.get("untried_lengths", ())]
    if not lengths:
        return None
    return (
        f"packed sequences were not compared with single ones beyond {', '.join(lengths)} tokens, which would have "
        "taken too long: look at the first loss of round 1"
    )
