"""Names that become paths: cases, data sets, configurations, trainers, runs. The one place that joins them to folders.

A name may come out of a file that somebody else wrote. It must stay within its folder on every system, must not be one
that a system treats as a device, and must not look like a temporary file of this package. Names that never become paths
(classes, channels, groups) may be any text of one line.
"""

from __future__ import annotations

import re
import shlex
import unicodedata
from pathlib import Path

from unisegdiff_pipeline.core.errors import UsdError

MAX_TEXT = 200  # characters
MAX_BYTES = 200  # file systems allow 255; endings and the names of temporaries take the rest
_FORBIDDEN = re.compile(r'[/\\:*?"<>|]')
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)  # Windows


def require_name(name: str, what: str) -> str:
    """Return `name` where it may become part of a path.

    Args:
        name: without an ending.
        what: begins the message, for example "the case of imagesTr/a_0000.png".

    Raises:
        UsdError: names what is wrong with it.
    """
    problem = name_problem(name)
    if problem is not None:
        shown = repr(name) if len(name) <= 100 else repr(name[:100]) + "..."
        raise UsdError(
            f"{what} is named {shown}, but a name that becomes a file must not {problem}; rename it, best with "
            f"letters, digits, '-', '_' and '.'."
        )
    return name


def composed(name: str) -> str:
    """The name in Unicode's composed form (NFC), so that names which look the same are the same."""
    return unicodedata.normalize("NFC", name)


def name_problem(name: str) -> str | None:
    """What a name must not do and does; None for one that may become part of a path."""
    if not name.strip():
        return "be empty"
    if name.startswith("."):
        return "begin with a dot, as hidden files and '..' do"
    if found := _FORBIDDEN.search(name):
        return f"hold {found[0]}"
    if not name.isprintable():
        return "hold line breaks, control characters or bytes that are no text"
    if _DEVICES.match(name):
        return "be one that Windows keeps for devices (CON, AUX, NUL, COM1, ...)"
    if len(name.encode("utf-8")) > MAX_BYTES:
        return f"be longer than {MAX_BYTES} bytes"
    return None


def require_text(name: str, what: str) -> str:
    """Return `name` where it is a text of one line that tables, figures and terminals can show.

    Raises:
        UsdError: names what is wrong with it; `what` begins the message.
    """
    if not name.strip() or not name.isprintable() or len(name) > MAX_TEXT:
        raise UsdError(
            f"{what} is {name[:MAX_TEXT]!r}; it must be a text of 1 to {MAX_TEXT} characters without line breaks and "
            f"control characters. Rename it."
        )
    return name


def file_of(folder: Path, name: str, ending: str = "") -> Path:
    """`folder`/`name``ending`, where the name may become part of a path; else a UsdError."""
    return folder / f"{require_name(name, f'something to be stored in {folder}')}{ending}"


def quoted(word: object) -> str:
    """A name or path as a shell takes it for one word, for commands that the user may copy."""
    return shlex.quote(str(word))
