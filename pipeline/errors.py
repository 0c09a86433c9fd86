"""The errors of the pipeline, one root, each also a standard exception.

RondoError
├── ConfigError (ValueError)            a recipe that cannot be run
├── DataError (ValueError)              prompts, candidates or judgments that do not fit their schema
│   └── PromptTooLongError              a prompt, or a prompt with its candidates, beyond a limit
├── UnsupportedModelError (ValueError)  a model that a part cannot handle exactly
├── JudgeError (RuntimeError)           a judge that cannot be loaded or asked
│   └── BudgetError                     a judge that has spent what the recipe allows
├── EngineError (RuntimeError)          a sampling engine that failed
│   └── WeightSyncError                 sampler and trainer disagree on the same weights
├── FirstLossError (RuntimeError)       the first loss of an update is not the value that theory gives
├── LostUpdateError (RuntimeError)      a process that is asked to go on with an update which it has not begun
├── OutOfMemoryError (MemoryError)      a device that does not hold a single preference
├── NoRoomError (OSError)               a directory for temporary files that is full
└── NonFiniteError (FloatingPointError) a loss or a gradient that is not a number
"""


class RondoError(Exception):
    """Root of every error that a user of rondo can meet."""


class ConfigError(RondoError, ValueError):
    """A recipe, or a change to one, that cannot be run."""


class DataError(RondoError, ValueError):
    """Data that do not have the form that their record demands."""


class PromptTooLongError(DataError):
    """A prompt, alone or with its candidates, that exceeds a context or a token budget."""


class UnsupportedModelError(RondoError, ValueError):
    """A model whose computation this code would not reproduce exactly."""


class JudgeError(RondoError, RuntimeError):
    """A judge that cannot be loaded, or that failed on a shard."""


class BudgetError(JudgeError):
    """A judge that has spent the requests or tokens that its recipe allows."""


class EngineError(RondoError, RuntimeError):
    """A sampling engine that cannot start, or that died."""


class WeightSyncError(EngineError):
    """The sampler's log-probabilities differ from the trainer's on the same weights."""


class FirstLossError(RondoError, RuntimeError):
    """The first loss of an update differs from the value that holds when policy and reference are one."""


class LostUpdateError(RondoError, RuntimeError):
    """A process that has not begun the update, or the sending, that it is to go on with: the one that had is gone."""


class OutOfMemoryError(RondoError, MemoryError):
    """A device whose memory does not hold the smallest piece of an update."""


class NoRoomError(RondoError, OSError):
    """A directory for temporary files that is full."""


class NonFiniteError(RondoError, FloatingPointError):
    """A loss or a gradient that is not finite, found before the optimizer step."""
