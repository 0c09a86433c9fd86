"""Stores that earlier versions wrote, as fixtures: unpacked, and what was read from them then."""

import json
import tarfile
from pathlib import Path
from typing import Any

_FIXTURES = Path(__file__).parents[1] / "fixtures"


def unpack(version: str, root: Path) -> Path:
    """Unpacks the store of a version into a directory, which is the root; returns it."""
    with tarfile.open(_FIXTURES / f"store-{version}" / "store.tar.xz") as packed:
        packed.extractall(root, filter="data")
    return root


def expected(version: str) -> dict[str, Any]:
    """What the version itself read from its store; the fixture's README says which fields there are."""
    found: dict[str, Any] = json.loads((_FIXTURES / f"store-{version}" / "expected.json").read_text(encoding="utf-8"))
    return found
