"""Ctrl-C and a service manager's SIGTERM: both take the same way to an orderly end."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from flows.errors import InterruptedRunError


@contextmanager
def orderly_end(message: str) -> Iterator[None]:
    """A block that both signals end alike.

    Raises:
        InterruptedRunError: one came; with this message.
    """
    before = signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        yield
    except KeyboardInterrupt:
        raise InterruptedRunError(message) from None
    finally:
        signal.signal(signal.SIGTERM, before)
