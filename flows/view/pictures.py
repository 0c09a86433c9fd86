"""Charts as pictures of their own, which a browser asks for when they come into view: a page need not wait for them."""

import hashlib
import json
import threading
from collections import OrderedDict
from functools import lru_cache
from typing import Literal

from flows.report.rendering import DARK, LIGHT, svg_of

Mode = Literal["light", "dark"]
MODES: tuple[Mode, ...] = ("light", "dark")
_COLOURS = {"light": LIGHT, "dark": DARK}
_KEPT = 1024
"""Charts that can be asked for; those that no page has shown for longest go first."""


class Pictures:
    """The charts that pages have shown lately, by a digest of what they draw; threads may share it."""

    def __init__(self) -> None:
        self._specs: OrderedDict[str, str] = OrderedDict()
        self._lock = threading.Lock()

    def keep(self, spec: str) -> str:
        """Keeps a chart's definition, so that its picture can be asked for; returns its key."""
        key = hashlib.sha256(spec.encode(errors="surrogatepass")).hexdigest()[:32]
        with self._lock:
            self._specs[key] = spec
            self._specs.move_to_end(key)
            while len(self._specs) > _KEPT:
                self._specs.popitem(last=False)
        return key

    def drawn(self, key: str, mode: Mode) -> str | None:
        """Draws a chart as an SVG that stands alone, in the colours of a mode; None if it is not kept any more."""
        with self._lock:
            spec = self._specs.get(key)
        if spec is None:
            return None
        svg = svg_from(spec)
        for role, colour in _COLOURS[mode].items():
            svg = svg.replace(f"var(--{role})", colour)
        return svg


@lru_cache(maxsize=512)
def svg_from(spec: str) -> str:
    """Draws a chart's definition, given as JSON."""
    return svg_of(json.loads(spec))


PICTURES = Pictures()
"""Those of this process: what renders pages, and what is asked for a picture, share it."""
