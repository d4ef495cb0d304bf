"""Files of the results directory: written whole or not at all."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from secrets import token_hex


def write(path: Path, content: str | bytes, what: str = "a file") -> Path:
    """Put content (text as UTF-8) into the file, whole or not at all; make its directory; return the path.

    Raises OSError naming the directory if that cannot be made or written.
    """
    temporary = path.with_name(f".{path.stem}.{token_hex(8)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(error.errno, f"cannot save {what}: {error.strerror}", str(path.parent)) from error
    finally:
        with suppress(OSError):
            temporary.unlink()
    return path


def check_writable(directory: str | os.PathLike[str]) -> None:
    """Make the directory. Raises OSError naming it if records cannot be saved there, before hours of work are lost."""
    probe = Path(directory) / f".{token_hex(8)}.tmp"
    try:
        probe.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OSError(error.errno, f"cannot save a record: {error.strerror}", str(directory)) from error
