"""Files and folders that appear whole or not at all, and locks between processes."""

import fcntl
import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def local_path(path: str | os.PathLike[str]) -> Path:
    """A path on this machine, with ~ expanded.

    Raises:
        ValueError: it is a URL.
    """
    text = os.fspath(path)
    if "://" in text:
        raise ValueError(f"{text}: a URL; allowed is a path, as of a bucket that is mounted")
    return Path(os.path.expanduser(text))


@contextmanager
def replacing(path: str | os.PathLike[str], *, sync: bool = True) -> Iterator[Path]:
    """Give a path to write to that becomes `path` when all is written; folders are made.

    Args:
        path: any name that the file system takes: the temporary one beside it is short.
        sync: wait for the disk, some milliseconds; without it a power cut can leave an empty file.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{secrets.token_hex(8)}.partial")
    try:
        yield partial
        if sync:
            with partial.open("rb+") as file:
                os.fsync(file.fileno())
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def making_folder(target: Path, prefix: str) -> Iterator[Path]:
    """Give a folder to write in that becomes `target`, unless another process has made it first.

    Args:
        target: the folder to make; its parent is there.
        prefix: start of the temporary name, by which what killed processes left can be found.

    Raises:
        OSError: it cannot be made or moved.
    """
    work = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
    try:
        yield work
        for path in filter(Path.is_file, work.iterdir()):
            with path.open("rb") as file:
                os.fsync(file.fileno())  # or a power cut can leave empty ones
        work.chmod(0o755)  # mkdtemp's 0700 would shut out other users
        try:
            work.rename(target)
        except OSError:
            if not (target.is_dir() and any(target.iterdir())):
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def lock(path: Path, *, wait: bool = False) -> BinaryIO:
    """Lock a file against other processes, for as long as what this returns is open.

    Args:
        path: the file, made if need be; it then says who holds it.
        wait: wait until it is free.

    Raises:
        BlockingIOError: another process holds it; the message says which.
        OSError: it cannot be opened, or is a symbolic link.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    file = os.fdopen(os.open(path, flags, 0o666), "r+b", buffering=0)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        with file:
            holder = file.read(1000).decode(errors="replace").strip() or "another process"
        raise BlockingIOError(f"{path} is held by {holder}") from None
    except OSError as error:
        print(f"note: {path} cannot be locked ({error.strerror}): one process at a time!")
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    return file
