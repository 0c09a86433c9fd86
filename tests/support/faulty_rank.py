"""`flows.remote.rank_main` whose second rank fails in the middle of a pass, once the file that FAULT names exists."""

import os
from pathlib import Path
from typing import Any

from flows.remote.rank_main import main
from pipeline.errors import OutOfMemoryError
from pipeline.model import logprobs

if __name__ == "__main__":
    pack_sums = logprobs.pack_sums

    def failing(*arguments: Any, **settings: Any) -> Any:
        if os.environ["RANK"] == "1" and Path(os.environ["FAULT"]).exists():
            raise OutOfMemoryError("the memory of one of 2 devices is full")
        return pack_sums(*arguments, **settings)

    logprobs.pack_sums = failing
    main()
