"""Runs the command line as if sampler and trainer were on two machines: the sampler reads every policy from the store.

python -m support.from_checkpoints rondo-arguments...
"""

from flows.round.worker_set import WorkerSet


def main() -> None:
    """Hides that the two are processes of one machine, and runs the command line."""
    WorkerSet.share_memory = property(lambda _self: False)  # type: ignore[assignment]
    from flows.cli.main import main as run

    run()


if __name__ == "__main__":
    main()
