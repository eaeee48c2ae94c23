"""Reports of updates that were skipped because they were not finite."""

from collections.abc import Callable
from typing import Any

from spidr_jax.train import distributed


class NotFiniteError(RuntimeError):
    """Too many updates in a row were not finite."""


class SkippedUpdates:
    """Reports the updates that a step skipped, a step late: none is waited for.

    Attributes:
        in_a_row: the last steps whose updates were skipped.
    """

    def __init__(self, skipped: int, limit: int, describe: Callable[[int], str]) -> None:
        """Begin after `skipped` skipped updates; `describe(step)` names the batch of a step."""
        self.in_a_row = 0
        self._skipped, self._limit, self._describe = skipped, limit, describe
        self._pending: tuple[int, Any] | None = None

    def add(self, step: int, skipped: Any) -> None:
        """Note the count (on the device) after a step just dispatched; check the step before.

        Raises:
            NotFiniteError: `limit` in a row.
        """
        pending, self._pending = self._pending, (step, skipped)
        if pending is not None:
            self._check(*pending)

    def flush(self) -> None:
        """Check the last step too.

        Raises:
            NotFiniteError: `limit` in a row.
        """
        if self._pending is not None:
            self._check(*self._pending)
        self._pending = None

    def _check(self, step: int, counted: Any) -> None:
        skipped, before = int(counted), self._skipped
        self._skipped = skipped
        if skipped == before:
            self.in_a_row = 0
            return
        self.in_a_row += 1
        distributed.print0(
            f"warning: step {step}: loss or gradient not finite, update skipped "
            f"({skipped} so far, {self.in_a_row} in a row); its batch: {self._describe(step)}"
        )
        if self.in_a_row >= self._limit:
            raise NotFiniteError(
                f"the updates of {self.in_a_row} steps in a row, up to step {step}, were not "
                "finite (config.max_skipped): a lower optimizer.lr, or the batches named above, "
                "may be the reason; what was learnt before them is saved"
            )
