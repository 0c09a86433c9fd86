"""Transactions of Prefect's server on SQLite, two at a time: its own configuration, and a database on disk."""

import asyncio
from pathlib import Path

import pytest
import sqlalchemy
from sqlalchemy.exc import OperationalError

import flows.prefect_api  # noqa: F401  before Prefect
from flows.prefect_api.sqlite_server import begin_immediately


async def _both_read_then_write(path: Path) -> int:
    """Two transactions that read before either writes, if both may: the sum of what they have added."""
    from prefect.server.database.configurations import AioSqliteConfiguration

    database = AioSqliteConfiguration(f"sqlite+aiosqlite:///{path}/test.db")
    engine = await database.engine()
    async with engine.begin() as made:
        await made.execute(sqlalchemy.text("create table t (n integer)"))
        await made.execute(sqlalchemy.text("insert into t values (0)"))
    both_have_read = asyncio.Barrier(2)

    async def add() -> None:
        session = await database.session(engine)
        async with session, database.begin_transaction(session):
            read = (await session.execute(sqlalchemy.text("select n from t"))).scalar_one()
            try:
                async with asyncio.timeout(0.5):  # which one that waits for its turn will not do
                    await both_have_read.wait()
            except (TimeoutError, asyncio.BrokenBarrierError):
                pass
            await session.execute(sqlalchemy.text("update t set n = :n"), {"n": read + 1})

    await asyncio.gather(add(), add())
    async with engine.begin() as made:
        total: int = (await made.execute(sqlalchemy.text("select n from t"))).scalar_one()
    await engine.dispose()
    return total


def test_who_reads_and_then_writes_waits_for_its_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.server.database.configurations import AioSqliteConfiguration

    (tmp_path / "before").mkdir()
    with pytest.raises(OperationalError, match="database is locked"):
        asyncio.run(_both_read_then_write(tmp_path / "before"))
    monkeypatch.setattr(AioSqliteConfiguration, "begin_transaction", AioSqliteConfiguration.begin_transaction)
    begin_immediately()
    assert asyncio.run(_both_read_then_write(tmp_path)) == 2
