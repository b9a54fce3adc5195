"""Reading of .npz files, which may be truncated, damaged, or claim to hold more than the memory can take."""

from __future__ import annotations

import zipfile
from collections.abc import Collection
from pathlib import Path

import numpy as np

from unisegdiff_pipeline.core.errors import UsdError


def read_npz(
    path: Path, names: Collection[str], remedy: str, any_of: bool = False, max_bytes: int | None = None
) -> dict[str, np.ndarray]:
    """Arrays of an .npz file by name; the checksum of each is compared.

    Args:
        path: file as numpy.savez writes it.
        names: arrays to read; others are left alone.
        remedy: last sentence of every message.
        any_of: only the first of `names` that is there is read; one of them must be.
        max_bytes: largest size of an array, uncompressed; it is known before anything is decompressed.

    Raises:
        UsdError: missing, unreadable, damaged, without one of the arrays, or with one that is too large.
    """
    try:
        with zipfile.ZipFile(path) as archive, np.load(path, allow_pickle=False) as stored:
            present = [name for name in names if name in stored.files]
            if len(present) < (1 if any_of else len(names)):
                held = ", ".join(stored.files) or "nothing"
                wanted = (" or " if any_of else ", ").join(names)
                raise UsdError(f"{path} holds {held[:200]}; expected is an array named {wanted}. {remedy}")
            present = present[:1] if any_of else present
            for name in present:
                size = archive.getinfo(f"{name}.npy").file_size
                if max_bytes is not None and size > max_bytes:
                    raise UsdError(
                        f"{path}: the array {name} takes {size / 1e6:.1f} MB, at most {max_bytes / 1e6:.1f} MB "
                        f"are possible here. {remedy}"
                    )
            return {name: np.asarray(stored[name]) for name in present}
    except UsdError:
        raise
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise UsdError(f"{path} cannot be read ({error.strerror}). {remedy}") from error
    except Exception as error:  # of a damaged file numpy, zipfile and zlib raise whatever they meet first
        reason = str(error) or type(error).__name__
        raise UsdError(f"{path} cannot be read, it is truncated or damaged ({reason[:200]}). {remedy}") from error
