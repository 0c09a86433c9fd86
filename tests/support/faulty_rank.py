"""`flows.remote.rank_main` whose second rank fails in the middle of a pass, once the file that FAULT names exists.

Its waits for requests begin anew five times a second.
"""

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

from flows.remote import rank_main
from pipeline.errors import OutOfMemoryError
from pipeline.model import logprobs

if __name__ == "__main__":
    pack_logps = logprobs.pack_logps

    def failing(*arguments: Any, **settings: Any) -> Any:
        if os.environ["RANK"] == "1" and Path(os.environ["FAULT"]).exists():
            raise OutOfMemoryError("the memory of one of 2 devices is full")
        return pack_logps(*arguments, **settings)

    logprobs.pack_logps = failing
    rank_main.WAIT = timedelta(seconds=0.2)
    rank_main.main()
