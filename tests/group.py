"""Starts the processes of a run on this machine, as a launcher would; collects what they say."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import tiny
from ml_collections import ConfigDict


def environment(devices: int, **variables: Any) -> dict[str, str]:
    """This environment with so many devices a process, and the variables given."""
    outer = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "SLURM_"))}
    texts = {name: str(value) for name, value in variables.items()}
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    return outer | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"} | texts


class Group:
    """Running processes of one run, their outputs in files."""

    def __init__(
        self,
        folder: Path,
        config: ConfigDict | list[str],
        number: int,
        entry: str = "",
        devices: int = 1,
    ) -> None:
        """Start `number` processes of main.py, or of `entry`, a program that ends in it.

        In place of a config there may be all of Python's arguments.
        """
        folder.mkdir(parents=True, exist_ok=True)
        main = ["-m", "spidr_jax.main"]
        if entry:
            (folder / "entry.py").write_text(entry)
            main = [str(folder / "entry.py")]
        arguments = config if isinstance(config, list) else [*main, *tiny.flags(config)]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        self.outputs = [folder / f"output{i}" for i in range(number)]
        self.processes = []
        for i, path in enumerate(self.outputs):
            variables = environment(
                devices, JAX_COORDINATOR_ADDRESS=address, JAX_NUM_PROCESSES=number, JAX_PROCESS_ID=i
            )
            with path.open("w") as output:
                self.processes.append(
                    subprocess.Popen(
                        [sys.executable, *arguments],
                        env=variables,
                        stdout=output,
                        stderr=subprocess.STDOUT,
                    )
                )

    def output(self, process: int) -> str:
        """What a process has said so far."""
        return self.outputs[process].read_text()

    def wait_for(self, text: str, seconds: float = 240) -> None:
        """Wait until the first process has said something."""
        end = time.monotonic() + seconds
        while text not in self.output(0):
            ended = [process.poll() for process in self.processes]
            assert set(ended) == {None}, f"{ended}: {self.all_outputs()}"
            assert time.monotonic() < end, self.all_outputs()
            time.sleep(0.1)

    def statuses(self, seconds: float = 240) -> list[int]:
        """Wait for all processes; their exit statuses."""
        end = time.monotonic() + seconds
        try:
            return [process.wait(max(0, end - time.monotonic())) for process in self.processes]
        except subprocess.TimeoutExpired:
            raise AssertionError(f"not ended in {seconds} s: {self.all_outputs()}") from None

    def all_outputs(self) -> str:
        """All that was said, for a failing test."""
        return "\n".join(self.output(i) for i in range(len(self.outputs)))

    def __enter__(self) -> "Group":
        """Give the group itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Leave no process behind."""
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            process.wait()
