"""Learning rates and teacher decays equal the reference's at and around every boundary."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spidr_jax.method import teacher
from spidr_jax.method.teacher import TeacherConfig
from spidr_jax.train import optim
from spidr_jax.train.optim import OptimizerConfig

torch = pytest.importorskip("torch")
pytest.importorskip("spidr")

from spidr.config import OptimizerConfig as ReferenceOptimizerConfig  # noqa: E402
from spidr.models.dinosr import ema_scheduler  # noqa: E402
from spidr.models.spidr import exp_ema_scheduler  # noqa: E402
from spidr.optimizer import build_scheduler  # noqa: E402

# boundaries at 12, 200 and 400, as in the recipe but a thousand times sooner
SHORT = OptimizerConfig(
    warmup_steps=12,
    hold_steps=188,
    decay_steps=200,
    max_steps=400,
    rsqrt_timescale=10,
    rsqrt_shift=7,
)


def reference_rates(config: OptimizerConfig, steps: int) -> list[float]:
    """Rates of the updates with 0 .. steps - 1 finished steps before them."""
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=config.lr)
    fields = dataclasses.asdict(config)
    del fields["name"]
    scheduler = build_scheduler(optimizer, ReferenceOptimizerConfig(**fields))
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("warmup_steps", [0, 1, 12])
@pytest.mark.parametrize("scheduler", ["tristage", "cosine", "rsqrt", "constant"])
def test_learning_rates_are_the_references_at_every_step(scheduler: str, warmup_steps: int) -> None:
    config = dataclasses.replace(SHORT, scheduler=scheduler, warmup_steps=warmup_steps)
    steps = warmup_steps + 188 + 200 + 1 if scheduler == "tristage" else 401
    ours = jax.vmap(lambda step: optim.learning_rate(config, step))(jnp.arange(steps))
    np.testing.assert_allclose(ours, reference_rates(config, steps), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", ["tristage", "cosine", "rsqrt", "constant"])
def test_learning_rates_of_the_recipe_are_the_references(scheduler: str) -> None:
    config = OptimizerConfig(scheduler=scheduler)
    edges = np.array([0, 12_000, 200_000, 400_000])
    around = (edges[:, None] + np.arange(-2, 3)).ravel()
    steps = np.concatenate([around[(around >= 0) & (around <= 400_000)], [6_000, 300_000]])
    ours = jax.vmap(lambda step: optim.learning_rate(config, step))(jnp.asarray(steps))
    theirs = np.array(reference_rates(config, 400_001))[steps]
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def our_weights(config: TeacherConfig, steps: list[int], freeze_step: int) -> np.ndarray:
    weigh = jax.vmap(lambda step: teacher.ema_rate(config, step, freeze_step))
    return np.asarray(weigh(jnp.asarray(steps)))


def test_exponential_teacher_is_the_references_and_ends_at_the_same_step() -> None:
    steps = [0, 1, 2, 3, 1000, 20_000, 150_000, 184_205, 184_206, 184_207, 184_208, 400_000]
    ours = our_weights(TeacherConfig(), steps, freeze_step=200_000)
    decays = [exp_ema_scheduler(step, 0.999, 20_000, 1e-7) for step in steps]
    np.testing.assert_allclose(ours, 1 - np.array(decays), rtol=2e-6)
    assert list(ours > 0) == [step <= 184_206 for step in steps]


def test_linear_teacher_is_the_references_and_ends_at_the_freeze() -> None:
    config = TeacherConfig(schedule="linear")
    steps = [0, 1, 2, 3, 15_000, 29_999, 30_000, 30_001, 199_999, 200_000, 200_001, 400_000]
    ours = our_weights(config, steps, freeze_step=200_000)
    decays = [ema_scheduler(step, 0.999, 0.9999, 30_000, 200_000) for step in steps]
    np.testing.assert_allclose(ours, 1 - np.array(decays), rtol=2e-6)
    assert list(ours > 0) == [step < 200_000 for step in steps]
