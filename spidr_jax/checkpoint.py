"""Checkpoints of a run: state, data position and config, with Orbax."""

import math
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import args as ocp_args
from orbax.checkpoint.checkpoint_managers import preservation_policy


class Checkpoints:
    """The checkpoints under a run's folder; saving goes on in the background."""

    def __init__(self, folder: Path, keep: int, keep_every: int = 0, best: str = "") -> None:
        """Open or make `folder`.

        Args:
            folder: of the checkpoints.
            keep: the last so many stay.
            keep_every: those of every so many steps stay too, 0 for none.
            best: the one that is best in this metric stays too, empty for none; of a loss the
                lowest is best, of anything else the highest.
        """
        self._best = best
        self._metrics: dict[int, Mapping[str, float]] = {}  # while Orbax still writes them
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
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def latest(self) -> int | None:
        """The newest step saved, None if there is none."""
        return self._manager.latest_step()

    def best(self) -> tuple[int, float] | None:
        """The step of the best checkpoint and what makes it that, None if there is none."""
        step = self._manager.best_step() if self._best else None
        if step is None:
            return None
        metrics = self._metrics.get(step) or self._manager.metrics(step) or {}
        return None if self._score(metrics) == -math.inf else (step, metrics[self._best])

    def improves(self, metrics: Mapping[str, float]) -> bool:
        """Whether a checkpoint with these metrics would be the best."""
        best = self.best()
        return self._score(metrics) > (self._score({self._best: best[1]}) if best else -math.inf)

    def _score(self, metrics: Mapping[str, float]) -> float:
        """How good a checkpoint is, the worst where its metrics do not say."""
        value = metrics.get(self._best, math.nan)
        if not math.isfinite(value):
            return -math.inf
        return -value if re.search(r"loss(_\d+)?$", self._best) else value

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
            OSError: there is no room for it, or the last save failed in the background.
        """
        if step == self._manager.latest_step():
            return
        needed, free = _num_bytes(state), shutil.disk_usage(self._manager.directory).free
        if needed > free:
            raise OSError(
                f"no room for checkpoint {step} in {self._manager.directory}: "
                f"{needed >> 20} MiB needed, {free >> 20} MiB free"
            )
        items = ocp_args.Composite(
            state=ocp_args.StandardSave(state),
            data=ocp_args.JsonSave(position),
            config=ocp_args.JsonSave(config),
        )
        self._metrics[step] = metrics or {}
        try:
            with _as_os_error(f"checkpoint {step}, or the one before it, was not written"):
                self._manager.save(step, args=items, metrics=self._metrics[step])
        except OSError:
            self._manager.reload()  # what it took for saved is not, nor what it let go deleted
            raise

    def read(self, step: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """The data position and the config that a checkpoint was saved with."""
        items = ocp_args.Composite(data=ocp_args.JsonRestore(), config=ocp_args.JsonRestore())
        restored = self._manager.restore(step, args=items)
        return restored["data"], restored["config"]

    def restore(self, step: int, target: Any) -> Any:
        """The state of a checkpoint, in the structure, types and shardings of `target`."""
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, target)
        items = ocp_args.Composite(state=ocp_args.StandardRestore(abstract))
        return self._manager.restore(step, args=items)["state"]

    def wait(self) -> None:
        """Wait for the last save.

        Raises:
            OSError: it failed.
        """
        with _as_os_error("the last checkpoint was not written"):
            self._manager.wait_until_finished()
            self._manager.check_for_errors()

    def close(self) -> None:
        """Stop the background threads."""
        self._manager.close()


def _num_bytes(state: Any) -> int:
    return sum(x.nbytes for x in jax.tree.leaves(state))


@contextmanager
def _as_os_error(what: str) -> Iterator[None]:
    """Orbax passes on whatever its background threads met: say it in one line."""
    try:
        yield
    except Exception as error:
        reason = str(error).splitlines()[0][:200] if str(error) else repr(error)
        raise OSError(f"{what}: {reason}") from error
