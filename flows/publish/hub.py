"""The Hub's client as we use it: with retries, and with errors of ours."""

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from huggingface_hub import CommitOperationAdd, HfApi

# HTTPError is that of the HTTP library which the client uses, whichever it is.
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError  # type: ignore[attr-defined]
from huggingface_hub.utils.tqdm import disable_progress_bars

from flows.errors import PublishError
from pipeline.errors import ConfigError

_TRIES = 3
_WAIT_S = 1.0
_AGAIN = (408, 429, 500, 502, 503, 504)
_PUBLIC_HUB = "https://huggingface.co"
_Result = TypeVar("_Result")


class Hub:
    """A Hub, for the owner of this token.

    Args:
        token: what may write there; it is sent to this Hub alone.
        private: whether a new repository is seen by its owner only.

    Raises:
        ConfigError: from all methods: the Hub takes no repository of this name.
        PublishError: from all methods: the Hub refuses or fails; what it has already stays.
    """

    def __init__(self, token: str, private: bool) -> None:
        self.endpoint = os.environ.get("HF_ENDPOINT", _PUBLIC_HUB).rstrip("/")
        self._api = HfApi(endpoint=self.endpoint, token=token)
        self._private = private
        disable_progress_bars()

    def create(self, repo: str, kind: str) -> str:
        """Creates a repository of this kind, "model" or "dataset", if it is not there; returns its full name."""

        def create() -> str:
            made = self._api.create_repo(repo, repo_type=kind, private=self._private, exist_ok=True)
            return str(made.repo_id)

        return self._request(create, repo, kind)

    def push(self, repo: str, kind: str, files: Mapping[str, Path | bytes], message: str) -> str:
        """Makes one commit with these files, by their names there; returns the repository's address."""

        def commit() -> None:
            # The client looks up what is there already, so that a commit whose reply was lost is not made twice.
            additions = [
                CommitOperationAdd(name, str(data) if isinstance(data, Path) else data)
                for name, data in sorted(files.items())
            ]
            self._api.create_commit(repo, additions, commit_message=message, repo_type=kind)

        self._request(commit, repo, kind)
        return f"{self.endpoint}/{'datasets/' if kind == 'dataset' else ''}{repo}"

    def _request(self, ask: Callable[[], _Result], repo: str, kind: str) -> _Result:
        # The client repeats uploads by itself, but neither the creation of a repository nor a commit.
        for attempt in range(1, _TRIES + 1):
            try:
                return ask()
            except HFValidationError as error:
                raise ConfigError(f"'{repo}' is no name of a repository: give NAME or NAMESPACE/NAME") from error
            except HTTPError as error:
                status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
                if attempt == _TRIES or (status is not None and status not in _AGAIN):
                    raise PublishError(self._explain(error, status, f"{kind} '{repo}'")) from None
                time.sleep(_WAIT_S * attempt)
            except (ValueError, OSError) as error:
                raise PublishError(f"the Hub at {self.endpoint} gave no answer of the Hub's kind: {error}") from None
        raise AssertionError

    def _explain(self, error: Exception, status: int | None, what: str) -> str:
        if status == 401:
            return f"the Hub at {self.endpoint} does not know the token in HF_TOKEN: give one that may write"
        if status == 403:
            return f"the token in HF_TOKEN may not write the {what}: give one that may, or another name"
        if status == 404:
            return f"the Hub at {self.endpoint} has no {what}, or does not show it to the token in HF_TOKEN"
        again = "publish again: what has arrived is not sent twice"
        if status is None:
            return (
                f"the connection to the Hub at {self.endpoint} broke {_TRIES} times ({type(error).__name__}): {again}"
            )
        said = getattr(error, "server_message", None)
        times = f", {_TRIES} times" if status in _AGAIN else ""
        return f"the Hub answered {status} to the {what}{times}{f' ({said})' if said else ''}: {again}"
