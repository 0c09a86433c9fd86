"""Where pipeline and storage meet: flows, worker processes, the command line and the report."""

from flows.host.loopback import spare_loopback
from storage.errors import REMEDIES, STAGE_TITLES

spare_loopback()  # before anything reads the environment: this process's server, its workers and theirs

# The store has no commands and no checkpoints: these complete its sentences, in every process that imports flows.
REMEDIES.update(
    {
        "go on": "resume it, as 'rondo resume {run}' does",
        "try again": "resume",
        "clear": "'rondo delete {run}' removes it",
        "take over": "take the run over, as 'rondo resume {run} --take-over' does",
        "verify": "see 'rondo verify {run}'",
    }
)
STAGE_TITLES["checkpoint"] = "weights"
