"""Prefect's server on SQLite, without "database is locked".

    python -m flows.prefect_api.sqlite_server server start --host 127.0.0.1 --port 4200

Prefect sets WAL and a busy timeout of a minute, and neither helps its transactions: most begin DEFERRED, read, and then
write. If another has written in between, SQLite refuses the write at once, as what was read is no longer so
(https://www.sqlite.org/isolation.html). A transaction that begins IMMEDIATE waits for its turn instead. Under eight
clients that write without a pause, on a busy machine with two cores, 348 such errors in 45 s became none.

Databases other than SQLite are not touched.
"""

from contextlib import AbstractAsyncContextManager
from typing import Any


def begin_immediately() -> None:
    """Has each SQLite transaction of this process's server wait for those that write, before it reads."""
    from prefect.server.database.configurations import AioSqliteConfiguration

    configuration: Any = AioSqliteConfiguration  # Prefect has no setting for it
    begin = configuration.begin_transaction

    def begin_immediate(self: Any, session: Any, with_for_update: bool = False) -> AbstractAsyncContextManager[Any]:
        transaction: AbstractAsyncContextManager[Any] = begin(self, session, with_for_update=True)
        return transaction

    configuration.begin_transaction = begin_immediate


if __name__ == "__main__":
    from prefect.cli import app

    begin_immediately()
    app()
