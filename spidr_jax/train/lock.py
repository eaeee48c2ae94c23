"""One run at a time in a folder: a second one would overwrite the first one's files."""

import fcntl
import os
import socket
from pathlib import Path

from spidr_jax.train import distributed


class Claim:
    """Holds a run's folder for as long as it, or its process, is there."""

    def __init__(self, folder: Path) -> None:
        """Lock the folder, in the first of a run's processes.

        Raises:
            ValueError: another process holds it; the message says which.
        """
        self._file = -1
        if not distributed.is_first():
            return
        self._file = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            holder = os.read(self._file, 1000).decode().strip() or "another process"
            raise ValueError(
                f"config.workdir = {str(folder)!r}: {holder} trains there; let it end, or choose "
                "another folder"
            ) from None
        except OSError as error:  # a file system without locks
            distributed.print0(
                f"note: {folder} cannot be locked ({error.strerror}): one run at a time!"
            )
        os.ftruncate(self._file, 0)
        os.write(self._file, f"process {os.getpid()} on {socket.gethostname()}\n".encode())

    def __del__(self) -> None:
        if self._file >= 0:
            os.close(self._file)
