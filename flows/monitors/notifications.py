"""Messages to people through Prefect's blocks.

They tell that the rounds are done, that the run has failed, or that a round has raised an alarm or waits for labels.
"""

import asyncio
from collections.abc import Mapping, Sequence

from prefect.blocks.abstract import NotificationBlock
from prefect.blocks.core import Block
from prefect.logging import get_logger

from flows.host.progress import Display
from flows.prefect_api.server import has_background_server, prefect_api
from pipeline.config import NotificationsConfig
from pipeline.config.monitors import Event
from pipeline.errors import ConfigError

SEND_SECONDS = 30.0


class Notifier:
    """Sends what a recipe asks for. If a message cannot be sent, the terminal says so, and the run goes on.

    Args:
        blocks: the blocks that send, by the names that the recipe gives.
        events: what is told.
        display: where a failure is said.
    """

    def __init__(self, blocks: Mapping[str, NotificationBlock], events: Sequence[Event], display: Display) -> None:
        self._blocks, self._events, self._display = blocks, events, display
        self._sending: set[asyncio.Task[None]] = set()

    def tell(self, event: Event, subject: str, text: str) -> None:
        """Begins to send a message to all; the run goes on meanwhile."""
        if event in self._events:
            for name, block in self._blocks.items():
                task = asyncio.create_task(self._send(name, block, subject, text))
                self._sending.add(task)
                task.add_done_callback(self._sending.discard)

    async def sent(self) -> None:
        """Waits until the messages are sent, or have failed."""
        await asyncio.gather(*self._sending)

    async def _send(self, name: str, block: NotificationBlock, subject: str, text: str) -> None:
        try:
            with block.raise_on_failure():
                async with asyncio.timeout(SEND_SECONDS):
                    await block.notify(text, subject)
        except Exception as error:
            # The error may quote the address, which is a secret of the block.
            self._display.say(f"the block '{name}' did not send '{subject}': {type(error).__name__}")
            get_logger("rondo").warning("the block '%s' did not send '%s': %s", name, subject, type(error).__name__)


async def open_notifier(config: NotificationsConfig, display: Display) -> Notifier:
    """Loads the blocks that a recipe names from the server.

    Raises:
        ConfigError: there is no such block, or it cannot notify, or there is no background server that keeps blocks.
        ServerError: the server does not answer.
    """
    if not config.blocks:
        return Notifier({}, (), display)
    if not has_background_server():
        raise ConfigError(
            f"notifications.blocks names {config.blocks[0]}, and no Prefect server that keeps it: start one with "
            "'rondo up', or set PREFECT_API_URL, or leave notifications out"
        )
    blocks = {}
    async with prefect_api():
        for name in config.blocks:
            blocks[name] = await _load(name)
    return Notifier(blocks, config.events, display)


async def _load(name: str) -> NotificationBlock:
    try:
        block = await Block.aload(name)
    except ValueError as error:  # Prefect's, of a block that is not there, and of one that its class refuses
        raise ConfigError(
            f"notifications.blocks: the Prefect server has no block '{name}' that can be loaded: 'prefect block ls' "
            "shows what there is, as TYPE/NAME"
        ) from error
    if not isinstance(block, NotificationBlock):
        raise ConfigError(
            f"notifications.blocks: '{name}' is a block that cannot notify: name one such as slack-webhook/team, or a "
            "custom-webhook"
        )
    return block
