"""Learning rates, optimizers, and what is trained, against values worked out by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from spidr_jax.model import model
from spidr_jax.model.config import ModelConfig
from spidr_jax.train import optim
from spidr_jax.train.optim import OptimizerConfig

TINY = ModelConfig(
    extractor_conv_layer_config=((8, 10, 5),),
    encoder_embed_dim=8,
    encoder_pos_conv_depth=1,
    encoder_pos_conv_groups=2,
    encoder_num_layers=2,
    encoder_num_heads=2,
    encoder_ff_interm_features=16,
    codebook_size=4,
    num_codebooks=1,
)


@pytest.mark.parametrize(
    ("scheduler", "rates"),
    [
        (
            "tristage",
            {12_000: 1, 199_999: 1, 200_000: 1, 300_000: 0.1, 400_000: 0.01, 500_000: 0.001},
        ),
        (
            "cosine",
            {12_000: 1, 206_000: 0.505, 400_000: 0.01, 303_000: 0.01 + 0.99 * (1 - 0.5**0.5) / 2},
        ),
        ("rsqrt", {12_000: 1, 200_000: 1, 210_000: 0.5**0.5, 400_000: 1 / math.sqrt(21)}),
        ("constant", {12_000: 1, 200_000: 1, 400_000: 1}),
    ],
)
def test_learning_rate_warms_up_and_follows_its_formula(
    scheduler: str, rates: dict[int, float]
) -> None:
    config = OptimizerConfig(scheduler=scheduler)
    for step, scale in ({0: 0.01, 6_000: 0.505, 11_999: 1 - 0.99 / 12_000} | rates).items():
        rate = optim.learning_rate(config, jnp.array(step))
        assert rate == pytest.approx(5e-4 * scale, rel=1e-6), step


def test_no_warm_up_starts_at_the_peak() -> None:
    for scheduler in optim.SCHEDULES:
        config = OptimizerConfig(scheduler=scheduler, warmup_steps=0)
        assert optim.learning_rate(config, 0) == pytest.approx(5e-4, rel=1e-6)


def test_a_shifted_rsqrt_warms_up_to_its_own_peak_and_holds_the_full_rate() -> None:
    config = OptimizerConfig(
        scheduler="rsqrt", warmup_steps=10, hold_steps=5, rsqrt_timescale=100, rsqrt_shift=300
    )
    found = [float(optim.learning_rate(config, step)) / 5e-4 for step in (0, 5, 10, 14, 15, 115)]
    expected = [0.01, 0.255, 1.0, 1.0, 0.5, 1 / math.sqrt(5)]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("size", [0.1, 30.0], ids=["below the norm", "clipped"])
def test_two_steps_are_clipping_and_adamw_by_hand(size: float) -> None:
    config = OptimizerConfig(
        lr=0.02, warmup_steps=10, init_lr_scale=0.0, weight_decay=0.1, max_norm=2.0
    )
    optimizer = optim.make_optimizer(config)
    params = {"kernel": jnp.array([[1.0, -2.0]]), "bias": jnp.array([0.5])}
    state = optimizer.init(params)
    x = np.array([1.0, -2.0, 0.5])
    m, v, rate = np.zeros(3), np.zeros(3), 0.01
    for t, direction in enumerate(([3.0, -4.0, 12.0], [1.0, 2.0, -2.0]), start=1):
        g = size * np.array(direction)
        gradient = {"kernel": jnp.array([g[:2]], jnp.float32), "bias": jnp.array(g[2:], "float32")}
        # at step 5 both times: one of them may have been skipped
        updates, state = optimizer.update(gradient, state, params, step=jnp.array(5))
        params = optax.apply_updates(params, updates)
        g *= min(1, 2.0 / np.linalg.norm(g))
        m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g**2
        x -= rate * (m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.95**t)) + 1e-6) + 0.1 * x)
        found = np.concatenate([params["kernel"].ravel(), params["bias"]])
        np.testing.assert_allclose(found, x, rtol=2e-6)


def names(tree: optim.Tree) -> set[str]:
    return {
        ".".join(entry.key for entry in path)
        for path, _ in jax.tree_util.tree_leaves_with_path(tree)
    }


@pytest.mark.parametrize(
    ("kind", "pre_norm", "untrained"),
    [
        ("spidr", False, "student.layers_1.final_layer_norm"),
        ("spidr", True, "student.layer_norm"),
        ("dinosr", False, None),
        ("dinosr", True, None),
    ],
)
def test_split_leaves_out_the_unused_norm_and_what_is_frozen(
    kind: str, pre_norm: bool, untrained: str | None
) -> None:
    fields = vars(TINY) | {"model_type": kind, "encoder_layer_norm_first": pre_norm}
    config = ModelConfig(**fields)
    params = jax.eval_shape(lambda key: model.init_params(config, key), jax.random.key(0))
    unused = {f"{untrained}.scale", f"{untrained}.bias"} if untrained else set()
    trained, rest = optim.split(params, model.trained(config, frozen=False))
    assert names(rest) == unused
    assert names(trained) == names(params) - unused
    trained, rest = optim.split(params, model.trained(config, frozen=True))
    extractor = {name for name in names(params) if name.startswith("feature_")}
    assert len(extractor) == 7
    assert names(rest) == unused | extractor
    assert optim.merge(trained, rest) == params


def mixed(config: OptimizerConfig) -> optax.GradientTransformation:
    """Momentum for matrices, AdamW's moments for the rest."""
    kinds = {"momentum": optax.trace(0.9), "adam": optax.scale_by_adam()}

    def label(params: optim.Tree) -> optim.Tree:
        return jax.tree.map(lambda x: "momentum" if x.ndim == 2 else "adam", params)

    return optax.chain(optax.partition(kinds, label), optim.descend(config))


@pytest.mark.parametrize("name", ["adamw", "mixed"])
def test_freeze_drops_what_belongs_to_front_end_and_projection_of_any_optimizer(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(optim.OPTIMIZERS, "mixed", mixed)
    config = OptimizerConfig(name=name)
    shapes = jax.eval_shape(lambda key: model.init_params(TINY, key), jax.random.key(0))
    params = jax.tree.map(lambda x: jnp.arange(x.size, dtype=x.dtype).reshape(x.shape), shapes)
    trained, _ = optim.split(params, model.trained(TINY, frozen=False))
    kept, _ = optim.split(params, model.trained(TINY, frozen=True))
    optimizer = optim.make_optimizer(config)
    _, state = jax.jit(optimizer.update)(trained, optimizer.init(trained), trained, step=0)
    frozen = optim.freeze(config, state, kept)
    assert jax.tree.structure(frozen) == jax.tree.structure(optimizer.init(kept))
    before = dict(jax.tree_util.tree_leaves_with_path(state))
    after = dict(jax.tree_util.tree_leaves_with_path(frozen))
    gone = {jax.tree_util.keystr(path) for path in before.keys() - after.keys()}
    assert gone
    assert all("'feature_extractor'" in n or "'feature_projection'" in n for n in gone)
    assert all(after[path] is before[path] for path in after)
    updates, _ = optimizer.update(kept, frozen, kept, step=0)
    assert names(updates) == names(kept)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "sgd"),
        ("lr", 0.0),
        ("lr", float("nan")),
        ("lr", float("inf")),
        ("betas", (0.9, 1.0)),
        ("betas", (0.9,)),
        ("eps", 0.0),
        ("weight_decay", -0.1),
        ("max_norm", 0.0),
        ("max_norm", float("nan")),
        ("scheduler", "linear"),
        ("warmup_steps", -1),
        ("hold_steps", -1),
        ("decay_steps", 0),
        ("init_lr_scale", 1.5),
        ("final_lr_scale", 0.0),
        ("rsqrt_timescale", 0),
        ("rsqrt_shift", -1),
    ],
)
def test_a_bad_value_is_refused_by_the_fields_name(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{field} = .*allowed is"):
        OptimizerConfig(**{field: value})


def test_a_cosine_that_ends_within_the_warm_up_is_refused() -> None:
    with pytest.raises(ValueError, match=r"max_steps = 12000.*warmup_steps = 12000"):
        OptimizerConfig(scheduler="cosine", max_steps=12_000)
