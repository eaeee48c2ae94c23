"""Files on a local disk, or behind a URL that fsspec reads (gs://, s3://, memory://, ...)."""

import hashlib
import io
import os
from typing import Any, TextIO


def is_remote(path: str) -> bool:
    """Say whether `path` is a URL rather than a local path."""
    return "://" in path


def printable(text: str) -> str:
    """Escape what is no visible character, as a shared manifest may drive the terminal with it."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def check_allowed(path: str) -> None:
    """Refuse what lies outside of the folder or URL `$SPIDR_JAX_AUDIO_ROOT`, where that is set.

    Raises:
        PermissionError: saying so.
    """
    root = os.environ.get("SPIDR_JAX_AUDIO_ROOT")
    if root and is_remote(root):
        allowed = path.startswith(root.rstrip("/") + "/") and ".." not in path.split("/")
    elif root:
        real = os.path.realpath(root)
        allowed = not is_remote(path) and os.path.commonpath([os.path.realpath(path), real]) == real
    if root and not allowed:
        raise PermissionError(f"outside of SPIDR_JAX_AUDIO_ROOT = {root}")


def join(root: str, path: str) -> str:
    """Give `path` relative to the folder or URL `root`; an absolute path or a URL stays."""
    if is_remote(path) or os.path.isabs(path) or not root:
        return path
    return f"{root.rstrip('/')}/{path}" if is_remote(root) else os.path.join(root, path)


def parent(path: str) -> str:
    """Give the absolute folder, or the URL, that holds `path`."""
    return path.rsplit("/", 1)[0] if is_remote(path) else os.path.dirname(os.path.abspath(path))


def _filesystem(url: str) -> Any:
    try:
        import fsspec  # optional: only remote corpora need it
    except ImportError as error:
        raise ImportError(f"{url}: reading a URL needs fsspec: pip install fsspec") from error
    try:
        return fsspec.core.url_to_fs(url)[0]
    except ImportError as error:
        raise ImportError(f"{url}: its file system is not installed: {error}") from error
    except ValueError as error:
        raise ValueError(f"{url}: fsspec cannot open it: {error}") from error


def read_range(url: str, start: int | None = None, size: int | None = None) -> bytes:
    """Read `size` bytes from `start` of a remote file, or all of it.

    Raises:
        ImportError: with what to install, where the URL's file system is missing.
        OSError: whatever the file system reports.
    """
    end = None if start is None or size is None else start + size
    files = _filesystem(url)
    try:
        data: bytes = files.cat_file(url, start=start, end=end)
    except OSError:
        raise
    except Exception as error:  # each file system has its own classes
        raise OSError(f"{type(error).__name__}: {error}") from error
    return data


def open_text(path: str | os.PathLike[str]) -> TextIO:
    """Open a local or remote text file in UTF-8, with or without a byte order mark, to be read."""
    path = os.fspath(path)
    if is_remote(path):
        return io.TextIOWrapper(
            _filesystem(path).open(path, "rb"), encoding="utf-8-sig", newline=""
        )
    return open(path, encoding="utf-8-sig", newline="")


def version_key(path: str) -> str:
    """Give a short text that changes whenever the file at `path` changes.

    Raises:
        FileNotFoundError: where there is no such file.
    """
    if is_remote(path):
        info = _filesystem(path).info(path)
        names = ("size", "etag", "ETag", "mtime", "updated", "LastModified", "created")
        stamp = repr([str(info.get(name)) for name in names])
    else:
        stat = os.stat(path)
        stamp = f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ino}"
    return hashlib.sha256(stamp.encode()).hexdigest()[:12]
