"""The connection to an endpoint: the whole reply is bounded, and an error is one whatever status it comes with."""

import asyncio
import importlib
from typing import Any

import openai

from pipeline.judges.support.llm_errors import error_within

WITHIN_200 = "rondo.error_within_200"
"""Marks a response whose own status was 200."""
# openai 3 speaks through httpx2, openai 2 through httpx.
_HTTP: Any = importlib.import_module(openai.DefaultAsyncHttpxClient.__mro__[1].__module__.partition(".")[0])


class BoundedClient(openai.DefaultAsyncHttpxClient):
    """Gives each try so many seconds, from its first byte to its last.

    The library's own limits are of the gaps between bytes, which an endpoint that drips never reaches.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(timeout=seconds)
        self._seconds = seconds

    async def send(self, request: Any, **options: Any) -> Any:
        """Sends a request and reads the whole response.

        Raises:
            TimeoutException: of the library; it did not come in time.
        """
        try:
            async with asyncio.timeout(self._seconds):
                response = await super().send(request, **options)
                body = await response.aread()
        except TimeoutError:
            raise _HTTP.ReadTimeout(f"no whole reply in {self._seconds:g} s", request=request) from None
        if response.status_code == 200 and (error := error_within(body)) is not None:
            response.status_code = error.status  # so that it is waited for, and reported, as one of this status
            response.extensions[WITHIN_200] = True
        return response
