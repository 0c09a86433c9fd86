"""Errors of the flows; they share the pipeline's root, so that the command line catches one class.

RondoError
├── WorkerError (RuntimeError)       a worker process reported a fault that is not the user's
│   └── WorkerDiedError              a worker process ended in the middle of its work
├── NodeError (RuntimeError)         a machine that did not join an update, or that found no one to join
├── PublishError (RuntimeError)      the Hub refuses or fails
├── ServerError (RuntimeError)       no Prefect server could be reached or started
├── ClusterError (RuntimeError)      a Ray cluster cannot be used, or has no replica to give
├── RunHangsError (RuntimeError)     a run that was asked to end and does not
├── InterruptedRunError              a person ended the command
│   └── PausedRunError               a person paused the run
└── WaitingForLabelsError            a run that goes on once people have labelled
"""

from pipeline.errors import RondoError


class WorkerError(RondoError, RuntimeError):
    """A fault inside a worker process; the message ends with the place of its log."""


class WorkerDiedError(WorkerError):
    """A worker process that ended before it answered; the work may be tried again."""


class NodeError(RondoError, RuntimeError):
    """A machine that did not join an update in time, or that found no one to join."""


class RunHangsError(RondoError, RuntimeError):
    """A run that was asked to end, and does not."""


class InterruptedRunError(RondoError):
    """A run that a person interrupted; what was committed stays."""


class PausedRunError(InterruptedRunError):
    """A run that a person paused: no schedule goes on with it until it is resumed."""


class WaitingForLabelsError(RondoError):
    """A run that has stopped for people's labels; it goes on when they are there."""


class PublishError(RondoError, RuntimeError):
    """A Hub that refuses what is published, or fails; what it has already stays."""


class ServerError(RondoError, RuntimeError):
    """A Prefect server that cannot be reached or started."""


class ClusterError(RondoError, RuntimeError):
    """A Ray cluster that cannot be reached or started, or that gives no replica of a worker."""
