"""Which checkpoint a run goes on from, and whether it may."""

import importlib.metadata
import platform
from pathlib import Path

from spidr_jax.train import distributed, metrics
from spidr_jax.train.checkpoint import Checkpoints
from spidr_jax.train.config import RunConfig, allowed_changes, changes

_LIBRARIES = ("spidr_jax", "jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def versions() -> dict[str, str]:
    """The versions of what computes a run."""
    found = {name: importlib.metadata.version(name) for name in _LIBRARIES}
    return {"python": platform.python_version()} | found


def choose_step(checkpoints: Checkpoints, wanted: int | None) -> int | None:
    """The checkpoint to go on from, None for a new start.

    Args:
        checkpoints: the run's.
        wanted: `config.resume_step`. It counts once: a checkpoint that was saved under it is
            what the run has become since, and the newest of those is gone on from.

    Raises:
        ValueError: there is no such checkpoint.
    """
    latest, steps = checkpoints.latest(), checkpoints.steps()
    if latest is None and not wanted:
        return None
    if wanted is None:
        return latest
    if latest is not None and _saved_under(checkpoints, latest) == wanted:
        if latest != wanted:
            distributed.print0(
                f"config.resume_step = {wanted} has been gone on from: now after {latest}"
            )
        return latest
    if wanted and wanted not in steps:
        there = ", ".join(map(str, [*steps, 0]))
        raise ValueError(
            f"config.resume_step = {wanted}: {checkpoints.folder} allows {there} (0: a new start)"
        )
    return wanted or None


def _saved_under(checkpoints: Checkpoints, step: int) -> int | None:
    try:
        return checkpoints.read(step)[1].get("resume_step")
    except ValueError:
        return None  # damaged: the reason to ask for another


def check_unstarted(folder: Path, every: int) -> None:
    """Refuse a new start where a run's checkpoints have been lost.

    A run that was killed before its first checkpoint, the one in work included, may start again.

    Raises:
        ValueError: the metrics go on for longer than that.
    """
    lines = metrics.read(folder / "metrics.jsonl")
    if lines and lines[-1]["step"] > 2 * every:
        raise ValueError(
            f"{folder} holds no checkpoint, but metrics up to step {lines[-1]['step']}: bring "
            "its checkpoints back, or --config.resume_step=0 starts again"
        )


def check_unchanged(checkpoints: Checkpoints, step: int, config: RunConfig, data: str) -> None:
    """Refuse to go on from a checkpoint with another config or other data.

    Args:
        checkpoints: the run's.
        step: step of the checkpoint.
        config: the config now.
        data: the fingerprint of the data now.

    Raises:
        ValueError: naming what has changed, field by field.
    """
    position, saved = checkpoints.read(step)
    imported = position["plan"] is None
    if imported and not position["optimizer"]:
        raise ValueError(
            f"{checkpoints.folder} holds a model without optimizer state, not a run to go on; "
            "--config.init_from starts a new run from it"
        )
    allowed = allowed_changes(config)
    changed = changes(config, saved, allowed, absent_counts=not imported)
    if not (changed or imported or "data" in allowed or position["plan"] == data):
        changed = ["the data: files, lengths or weights in the manifests, or an allowed field"]
    if changed:
        raise ValueError(
            f"{checkpoints.folder} holds a run at step {step} of which something has changed: "
            f"{'; '.join(changed)}. Undo that, choose another config.workdir, or allow it by "
            "--config.allow_changes=FIELD,... (data for the data)"
        )
    if config.init_from and config.init_from != saved.get("init_from"):
        distributed.print0(
            f"note: config.init_from is for a new run; this one goes on after step {step}"
        )
    before, now = position.get("versions", {}), versions()
    if other := [f"{name} {before[name]}" for name in before if before[name] != now.get(name)]:
        made = ", ".join(other)
        distributed.print0(f"note: checkpoint {step} was made with {made}; now rounding may differ")
