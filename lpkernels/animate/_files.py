"""Files that appear under their name only when they are complete."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lpkernels.errors import InputError, LpkernelsError


def existing_file(path: str | Path, what: str) -> Path:
    """Return ``path`` if it names a regular file that is not empty, else raise InputError; ``what`` says what it is."""
    path = Path(path)
    try:
        if not path.exists():
            raise InputError(f"{what} {path} does not exist")
        if not path.is_file():
            raise InputError(f"{what} {path} is not a file")
        if path.stat().st_size == 0:
            raise InputError(f"{what} {path} is empty (0 bytes)")
    except (OSError, ValueError) as error:  # a name too long, a NUL in it, a folder that may not be entered
        if isinstance(error, InputError):
            raise
        raise InputError(f"{what} {path!s:.200} cannot be looked up: {reason(error)}") from None
    return path


def reason(error: BaseException) -> str:
    """The cause of an exception as one short line: the system's own words where there are any."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(text.split())


class PendingFile:
    """A temporary file beside ``path`` that becomes ``path`` on ``commit`` and vanishes on ``discard``.

    It is created at once, so a folder that cannot be written to is reported before any work is done. Until ``commit``
    an earlier file at ``path`` stays as it was.

    Raises:
        InputError: the folder does not exist, or ``path`` is a folder.
        LpkernelsError: the folder cannot be written to.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        folder = self.path.parent
        if not folder.is_dir():
            raise InputError(f"cannot write {self.path}: the folder {folder} does not exist; make it first")
        if self.path.is_dir():
            raise InputError(f"cannot write {self.path}: it is a folder; name a file in it")
        self.temporary = folder / f".{self.path.name[:100]}.{secrets.token_hex(4)}.part"
        try:
            os.close(os.open(self.temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        except OSError as error:
            raise LpkernelsError(f"cannot write to the folder {folder.resolve()}: {reason(error)}") from None

    def commit(self) -> None:
        """Give the finished file its name, replacing an earlier one."""
        try:
            self.temporary.replace(self.path)
        except OSError as error:
            self.discard()
            raise LpkernelsError(f"cannot write {self.path}: {reason(error)}") from None

    def discard(self) -> None:
        """Remove the unfinished file; nothing appears at ``path``."""
        self.temporary.unlink(missing_ok=True)


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path that becomes ``path`` when the block ends well and is removed when it does not."""
    pending = PendingFile(path)
    try:
        yield pending.temporary
    except BaseException:
        pending.discard()
        raise
    pending.commit()
