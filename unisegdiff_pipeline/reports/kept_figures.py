"""Figures of a page that was written before, for a new one: what shows the same as then is not drawn again.

Drawing is most of the work of a report. Each kept figure stands between comments that name what it was drawn from, and
its own hash: a figure of a page that was damaged or edited is drawn again.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec

from unisegdiff_pipeline.core.files import file_hash, text_hash
from unisegdiff_pipeline.core.version import __version__
from unisegdiff_pipeline.reports.page import Html, sharing_pictures

P = ParamSpec("P")
_KEPT = re.compile(r"<!--drawn from ([0-9a-f]{32}) as ([0-9a-f]{32})-->(.*?)<!--end of drawn-->", re.DOTALL)


class KeptFigures:
    """The figures of a former page by what they were drawn from.

    Args:
        path: the former page; may be missing or unreadable.
        facts: whatever all figures are drawn from, as a text; it may stand for data by their hash.
    """

    def __init__(self, path: Path, facts: str) -> None:
        self._facts = facts
        try:
            page = path.read_text("utf-8", errors="replace")
        except OSError:
            page = ""
        found = _KEPT.findall(page)
        self._kept = {key: content for key, content_hash, content in found if text_hash(content) == content_hash}

    def draw(self, function: Callable[P, Html], of: str, *args: P.args, **kwargs: P.kwargs) -> Html:
        """The figure that `function` draws, taken from the former page where it has it.

        Args:
            function: called with all further arguments.
            of: what makes this figure another than that of the same function, or of other facts.
        """
        drawer = (__version__, drawing_code(), function.__module__, function.__qualname__)
        key = text_hash("\n".join((*drawer, self._facts, of)))
        content = self._kept.get(key)
        # Pictures are shared within a figure alone: another one that holds them may be gone from the next page.
        drawn = sharing_pictures(function(*args, **kwargs)) if content is None else content
        return Html(f"<!--drawn from {key} as {text_hash(drawn)}-->{drawn}<!--end of drawn-->")


@functools.cache
def drawing_code() -> str:
    """Hash of the source of all modules that draw.

    The version alone is that of before while the source of an installation is changed.
    """
    return text_hash("\n".join(file_hash(path) for path in sorted(Path(__file__).parent.glob("*.py"))))
