"""Checkpoints of a run: state, data position and config, with Orbax."""

import json
import math
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint import args as ocp_args
from orbax.checkpoint.checkpoint_managers import preservation_policy

from spidr_jax.eval.metrics import describe, parse_key
from spidr_jax.ops.fingerprint import fingerprint
from spidr_jax.train import distributed

_show_unraisable = sys.unraisablehook


def _unless_of_a_closed_loop(seen: Any) -> None:
    """TensorStore's threads print tracebacks about the event loop of a save or read that failed."""
    if str(seen.exc_value) != "Event loop is closed":
        _show_unraisable(seen)


sys.unraisablehook = _unless_of_a_closed_loop


class DamagedError(ValueError):
    """A checkpoint that cannot be read."""


class Checkpoints:
    """The checkpoints under a run's folder; saving goes on in the background.

    Attributes:
        folder: folder of the checkpoints, each under its step's number.
    """

    def __init__(self, folder: Path, keep: int, keep_every: int = 0, best: str = "") -> None:
        """Open or make `folder`.

        Args:
            folder: folder of the checkpoints.
            keep: the last so many stay.
            keep_every: those of every so many steps stay too, 0 for none.
            best: the one that is best in this metric stays too, empty for none: the lowest
                where lower is better, else the highest.

        Raises:
            ValueError: the processes see different folders.
        """
        self._best = best
        stays: list[preservation_policy.PreservationPolicy] = [preservation_policy.LatestN(keep)]
        if keep_every:
            stays.append(preservation_policy.EveryNSteps(keep_every))
        if best:
            stays.append(
                preservation_policy.BestN(
                    get_metric_fn=self._score, n=1, keep_checkpoints_without_metrics=False
                )
            )
        options = ocp.CheckpointManagerOptions(
            cleanup_tmp_directories=True,
            preservation_policy=preservation_policy.AnyPreservationPolicy(stays),
            best_fn=self._score if best else None,
        )
        self.folder = folder.resolve()  # tensorstore takes no ..
        self._saving: int | None = None
        self._manager = ocp.CheckpointManager(self.folder, options=options)
        newest = distributed.all_gather_int(-1 if (step := self.latest()) is None else step)
        if len(set(newest)) > 1:
            raise ValueError(
                f"{folder} must be one folder for all processes; their newest checkpoints "
                f"(-1 for none) are {newest}"
            )

    def steps(self) -> list[int]:
        """The steps saved, rising."""
        return sorted(self._manager.all_steps())

    def latest(self) -> int | None:
        """The newest step saved, None if there is none."""
        return self._manager.latest_step()

    def best(self) -> tuple[int, float] | None:
        """The best step on disk (`wait` for the last save before) and its value in the metric."""
        step = self._manager.best_step() if self._best else None
        if step is None:
            return None
        metrics = self._manager.metrics(step) or {}
        return (step, metrics[self._best]) if self._best in metrics else None

    def improves(self, metrics: Mapping[str, float]) -> bool:
        """Whether a checkpoint with these metrics would be the best, as `best` finds it."""
        best = self.best()
        return self._score(metrics) > self._score({self._best: best[1]} if best else {})

    def _score(self, metrics: Mapping[str, float]) -> float:
        """How good a checkpoint is, the worst where its metrics do not say."""
        value = metrics.get(self._best)
        if value is None:
            return -math.inf
        lower = describe(parse_key(self._best).name).direction == "lower"
        return -value if lower else value

    def save(
        self,
        step: int,
        state: Any,
        position: dict[str, Any],
        config: dict[str, Any],
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Save the state after `step` finished steps, if it is not; returns before it is written.

        Raises:
            OSError: there is no room for it. `wait` raises what happens in the background.
        """
        if step == self._manager.latest_step():
            return
        needed = (sum(x.nbytes for x in jax.tree.leaves(state)) >> 20) + 1
        free = distributed.all_gather_int(shutil.disk_usage(self.folder).free >> 20)[0]
        if needed > free:  # the first process decides for all
            raise OSError(f"no room for checkpoint {step}: {needed} MiB needed, {free} MiB free")
        items = ocp_args.Composite(
            state=ocp_args.StandardSave(state),
            data=ocp_args.JsonSave(position | {"fingerprints": _fingerprints(state)}),
            config=ocp_args.JsonSave(config),
        )
        finite = {name: x for name, x in (metrics or {}).items() if math.isfinite(x)}
        self._saving = step
        try:
            self._manager.save(step, args=items, metrics=finite)
        except Exception as error:  # Orbax passes on whatever its background threads met
            raise OSError(f"checkpoint {step} was not written: {_reason(error)}") from error

    def read(self, step: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """The data position and the config that a checkpoint was saved with.

        Raises:
            DamagedError: a file of it is missing or damaged.
        """
        with self._naming_damage(step):
            data, config = (
                _read_json(self.folder / str(step) / name / "metadata")
                for name in ("data", "config")
            )
        return data, config

    def restore(self, step: int, target: Any) -> Any:
        """The state of a checkpoint; each process reads the parts of its devices.

        Args:
            step: step of the checkpoint.
            target: shapes, types and shardings.

        Raises:
            DamagedError: a file of it is missing or damaged.
            ValueError: its arrays have other shapes.
        """
        folder = self.folder / str(step) / "state"
        with self._naming_damage(step):
            _read_json(folder / "_METADATA")  # Orbax would not name it
            saved = ocp.StandardCheckpointHandler().metadata(folder).tree
        _check_shapes(step, saved, target)
        items = ocp_args.Composite(state=ocp_args.StandardRestore(target))
        with self._naming_damage(step):
            state = self._manager.restore(step, args=items)["state"]
            _check_fingerprints(self.read(step)[0].get("fingerprints", {}), _fingerprints(state))
        return state

    def set_aside(self, after: int) -> list[int]:
        """Move the checkpoints after step `after` to the folder `set_aside` beside; give them."""
        later = [step for step in self.steps() if step > after]
        if later and distributed.is_first():
            aside = self.folder.parent / "set_aside"
            aside.mkdir(exist_ok=True)
            for step in later:
                name = f"{step}-{len(list(aside.iterdir()))}"  # there may be one of that step
                (self.folder / str(step)).rename(aside / name)
        if later:
            multihost_utils.sync_global_devices("set aside")
            self._manager.reload()
        return later

    def wait(self) -> None:
        """Wait for the last save, and remove what it has left if it failed.

        Raises:
            OSError: it failed.
        """
        failure = ""
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        except Exception as error:  # as in `save`
            failure = _reason(error)
        if not any(distributed.all_gather_int(bool(failure))):
            return
        # All must know the same checkpoints, and a full disk needs the room.
        if distributed.is_first():
            for partial in self.folder.glob("*.orbax-checkpoint-tmp"):
                shutil.rmtree(partial, ignore_errors=True)
        self._manager.reload()  # what the failed save was to replace is still there
        failure = failure or "another process failed"
        raise OSError(f"checkpoint {self._saving} was not written: {failure}")

    def close(self) -> None:
        """Stop the background threads."""
        self._manager.close()

    @contextmanager
    def _naming_damage(self, step: int) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            earlier = [str(other) for other in self.steps() if other < step]
            others = " or ".join(earlier) if earlier else "0, a new start"
            raise DamagedError(
                f"checkpoint {step} cannot be used: {_reason(error)}; "
                f"move {self.folder / str(step)} away, or --config.resume_step goes on from an "
                f"earlier one: {others}"
            ) from error


def _check_shapes(step: int, saved: Any, wanted: Any) -> None:
    there, here = (
        {".".join(map(str, name)): leaf.shape for name, leaf in ocp.tree.to_flat_dict(tree).items()}
        for tree in (saved, wanted)
    )
    other = [name for name in here if there.get(name) != here[name]]
    if other:
        name = other[0]
        raise ValueError(
            f"checkpoint {step} does not fit the config (config.model, config.freeze_step): "
            f"{len(other)} arrays, the first {name}, {there.get(name, 'missing')} there and "
            f"{here[name]} here. allow_changes cannot change shapes: undo that, or start a new "
            "run in another config.workdir"
        )


def _fingerprints(state: Any) -> dict[str, int]:
    """Of each array of a state, by name."""
    jax.block_until_ready(state)  # one program with sums over devices at a time, or CPUs deadlock
    return {
        ".".join(map(str, name)): int(fingerprint(x))
        for name, x in ocp.tree.to_flat_dict(state).items()
    }


def _check_fingerprints(saved: Mapping[str, int], found: Mapping[str, int]) -> None:
    if changed := [name for name in saved if found[name] != saved[name]]:
        raise ValueError(
            f"{len(changed)} arrays are not as they were saved, the first {changed[0]}: a bit of "
            "them has changed"
        )


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: is damaged: {error}") from None


def _reason(error: BaseException) -> str:
    """One line of what Orbax passes on, with the file or else the array that it names."""
    text = str(error)
    named = re.findall(r'local file "([^"]+[^/"])"', text) or re.findall(r"'path': '(.+)/'", text)
    first = " ".join(text.split())[:300]
    return f"{first.split(':')[0]}: {named[-1]}" if named else first
