"""The batch plan as a pure function: who is in which batch, where cropped, in every epoch."""

import hashlib
import itertools
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from spidr_jax.data import shuffle
from spidr_jax.data.buckets import histogram, place_buckets
from spidr_jax.data.plan import make_plan
from spidr_jax.data.sources import Source, parse_sources


class Lengths(NamedTuple):
    num_samples: np.ndarray
    fingerprint: str = ""


def source(lengths, name="data", weight=1.0, fingerprint=""):
    return Source(name, Lengths(np.asarray(lengths, np.int64), fingerprint), weight)


def draw_lengths(seed, count, low=2640, high=60_000):
    return np.random.default_rng(seed).integers(low, high, count)


DEFAULTS = {
    "min_samples": 2000,
    "max_samples": 50_000,
    "num_buckets": 4,
    "max_batch_samples": 120_000,
    "planned_devices": 2,
    "seed": 1,
}


def plan_of(lengths, **changes):
    sources = lengths if isinstance(lengths[0], Source) else [source(lengths)]
    return make_plan(sources, **(DEFAULTS | changes))


def assert_same(one, other):
    assert one.num_samples == other.num_samples
    assert one.epoch == other.epoch
    np.testing.assert_array_equal(one.rows, other.rows)
    np.testing.assert_array_equal(one.offsets, other.offsets)


plans = st.fixed_dictionaries(
    {
        "lengths": st.builds(
            draw_lengths,
            st.integers(0, 10**6),
            st.integers(200, 700),
            st.sampled_from([100, 2640, 20_000]),
            st.sampled_from([30_000, 60_000, 400_000]),
        ),
        "num_buckets": st.integers(1, 9),
        "planned_devices": st.integers(1, 4),
        "max_batch_samples": st.integers(50_000, 150_000),
        "max_samples": st.integers(40_000, 320_000),
        "seed": st.integers(0, 2**63),
    }
)
property_test = settings(max_examples=40, deadline=None)


@property_test
@given(plans)
def test_an_epoch_uses_each_utterance_at_most_once_and_crops_inside_it(arguments):
    plan, lengths = plan_of(**arguments), arguments["lengths"]
    devices = arguments["planned_devices"]
    assert plan.batches[plan.buckets[0]] > 0  # else its utterances would never be used
    for bucket in plan.buckets:
        assert (bucket - 80) % 2560 == 0
        assert bucket <= min(arguments["max_samples"], arguments["max_batch_samples"])
        assert plan.rows[bucket] == devices * (arguments["max_batch_samples"] // bucket)
    for epoch in (0, 1):
        steps = range(epoch * plan.batches_per_epoch, (epoch + 1) * plan.batches_per_epoch)
        batches = [plan.batch(step) for step in steps]
        used = np.concatenate([batch.rows for batch in batches])
        assert len(np.unique(used)) == len(used)
        assert len(used) + plan.dropped + plan.too_short == len(lengths)
        for batch in batches:
            assert batch.epoch == epoch
            assert len(batch.rows) == plan.rows[batch.num_samples]
            assert batch.offsets.min() >= 0
            assert np.all(batch.offsets + batch.num_samples <= lengths[batch.rows])


@property_test
@given(plans, st.randoms(use_true_random=False))
def test_batches_do_not_depend_on_what_was_asked_before(arguments, random):
    steps = list(range(2 * plan_of(**arguments).batches_per_epoch + 1))
    one_plan = plan_of(**arguments)
    in_order = [one_plan.batch(step) for step in steps]
    shuffled = random.sample(steps, len(steps))
    other_plan = plan_of(**arguments)
    for step in shuffled:
        assert_same(other_plan.batch(step), in_order[step])
    resumed = plan_of(**arguments)  # in the middle of the first epoch, on into the next
    for step in steps[len(steps) // 3 :]:
        assert_same(resumed.batch(step), in_order[step])
    with ThreadPoolExecutor(4) as threads:
        threaded = plan_of(**arguments)
        for step, batch in zip(steps, threads.map(threaded.batch, steps), strict=True):
            assert_same(batch, in_order[step])


@property_test
@given(plans)
def test_the_announced_loss_is_the_measured_one(arguments):
    plan, lengths = plan_of(**arguments), arguments["lengths"]
    longest = min(arguments["max_samples"], arguments["max_batch_samples"])
    kept = lengths[lengths >= 2640]
    steps = range(plan.batches_per_epoch)
    used = sum(len(b.rows) * b.num_samples for b in map(plan.batch, steps))
    assert plan.lost_share == pytest.approx(1 - used / np.minimum(kept, longest).sum(), abs=1e-9)


def test_epochs_differ_in_order_batches_and_crops():
    plan = plan_of(draw_lengths(0, 500))
    steps = range(2 * plan.batches_per_epoch)
    batches = [plan.batch(step) for step in steps]
    first, second = batches[: len(batches) // 2], batches[len(batches) // 2 :]
    assert [b.num_samples for b in first] != [b.num_samples for b in second]
    assert not {frozenset(b.rows.tolist()) for b in first} & {
        frozenset(b.rows.tolist()) for b in second
    }
    crops = [
        dict(itertools.chain(*(zip(b.rows.tolist(), b.offsets.tolist(), strict=True) for b in e)))
        for e in (first, second)
    ]
    both = crops[0].keys() & crops[1].keys()
    assert np.mean([crops[0][u] == crops[1][u] for u in both]) < 0.1


def test_crops_reach_both_ends_evenly():
    plan = plan_of(np.full(300, 12_880 + 99), num_buckets=1)
    offsets = np.concatenate([plan.batch(step).offsets for step in range(200)])
    assert (offsets.min(), offsets.max()) == (0, 99)
    counts = np.bincount(offsets // 10)
    assert counts.max() / counts.min() < 1.3


def test_rows_that_fill_no_batch_fall_by_one_bucket():
    # 2 devices x (120,000 // 50,000) = 4 rows a batch of the longer, 18 of the shorter.
    plan = plan_of([49_000] * 7 + [13_000] * 16, num_buckets=2, max_samples=49_999)
    assert plan.buckets == (12_880, 48_720)
    assert (plan.rows, plan.batches) == ({12_880: 18, 48_720: 4}, {12_880: 1, 48_720: 1})
    assert plan.dropped == 1
    short = next(b for b in map(plan.batch, range(2)) if b.num_samples == 12_880)
    assert np.count_nonzero(short.rows < 7) == 3


def test_golden_batches():
    # Other batches under the same arguments break every resumed run: raise plan._LAYOUT then.
    plan = plan_of([source(draw_lengths(3, 400), "a"), source(draw_lengths(4, 200), "b", 3.0)])
    digest = hashlib.sha256()
    for step in (0, 1, plan.batches_per_epoch, 1_000_000):
        batch = plan.batch(step)
        digest.update(
            repr((batch.num_samples, batch.rows.tolist(), batch.offsets.tolist())).encode()
        )
    assert digest.hexdigest()[:16] == "7c845f2731a48d22"
    assert plan.fingerprint == "444dc20d79b9b0582c83ace93328ff30"


def test_fingerprint_changes_with_whatever_changes_the_batches():
    lengths = draw_lengths(0, 400)
    fingerprints = [
        plan_of(lengths).fingerprint,
        plan_of(lengths[::-1]).fingerprint,
        plan_of(np.where(np.arange(400) == 7, lengths + 1, lengths)).fingerprint,
        plan_of([source(lengths, fingerprint="other ids")]).fingerprint,
        plan_of([source(lengths[:200]), source(lengths[200:], "b")]).fingerprint,
        plan_of([source(lengths[:200]), source(lengths[200:], "b", 2.0)]).fingerprint,
        plan_of(lengths, seed=2).fingerprint,
        plan_of(lengths, num_buckets=3).fingerprint,
        plan_of(lengths, planned_devices=3).fingerprint,
        plan_of(lengths, max_batch_samples=130_000).fingerprint,
        plan_of(lengths, max_samples=40_000).fingerprint,
        plan_of(lengths, min_samples=5000).fingerprint,
    ]
    assert len(set(fingerprints)) == len(fingerprints)
    assert plan_of(lengths.copy()).fingerprint == fingerprints[0]


@property_test
@given(
    lengths=st.lists(st.integers(2640, 30_000), min_size=1, max_size=30),
    num_buckets=st.integers(1, 5),
)
def test_no_other_buckets_lose_less(lengths, num_buckets):
    longest = 28_000
    buckets = place_buckets(histogram(np.array(lengths), 0, longest), num_buckets)

    def lost(candidate):
        levels = np.searchsorted(candidate, lengths, side="right")
        return sum(
            min(length, longest) - (candidate[level - 1] if level else 0)
            for length, level in zip(lengths, levels, strict=True)
        )

    steps = [2560 * level + 80 for level in range(1, 11)]
    others = itertools.chain.from_iterable(
        itertools.combinations([s for s in steps if s > buckets[0]], n) for n in range(num_buckets)
    )
    assert len(buckets) <= num_buckets
    assert lost(buckets) == min(lost((buckets[0], *other)) for other in others)


def test_outliers_cost_no_bucket():
    plan = plan_of(np.r_[draw_lengths(0, 3000, 30_000, 50_000), [2640] * 3])
    assert plan.buckets[0] >= 28_000
    assert plan.too_short == 3


def test_permutations_are_permutations_and_uniform():
    for size in (0, 1, 2, 3, 255, 256, 257, 1000):
        order = shuffle.permutation(5, size)
        np.testing.assert_array_equal(np.sort(order), np.arange(size))
    seats = np.array([shuffle.permutation(seed, 8) for seed in range(4000)])
    counts = np.array([np.bincount(seats[:, place], minlength=8) for place in range(8)])
    assert np.all(np.abs(counts - 500) < 5 * np.sqrt(500))


# ---- several sources


def test_sources_get_their_shares_and_each_utterance_at_most_once_a_pass():
    sizes, weights = (900, 2700, 450), (1.0, 1.0, 2.0)
    sources = [
        source(draw_lengths(seed, size), f"s{seed}", weight)
        for seed, (size, weight) in enumerate(zip(sizes, weights, strict=True))
    ]
    plan = plan_of(sources, max_batch_samples=600_000)
    epochs = 6
    seen = np.zeros(sum(sizes), int)
    audio = np.zeros(3)
    bounds = np.cumsum([0, *sizes])
    mixed = 0
    for step in range(epochs * plan.batches_per_epoch):
        batch = plan.batch(step)
        np.add.at(seen, batch.rows, 1)
        parts = np.histogram(batch.rows, bounds)[0]
        mixed += np.count_nonzero(parts) == 3
        audio += parts * batch.num_samples
    assert plan.shares == {"s0": 0.25, "s1": 0.25, "s2": 0.5}
    np.testing.assert_allclose(audio / audio.sum(), [0.25, 0.25, 0.5], atol=0.02)
    assert mixed > 0.9 * epochs * plan.batches_per_epoch
    for number, name in enumerate(plan.epochs_per_source):
        counts = seen[bounds[number] : bounds[number + 1]]
        # Buckets with few utterances round their draws up to one more a pass.
        assert counts.max() <= np.ceil(epochs * plan.epochs_per_source[name]) + 1
        fits = sources[number].corpus.num_samples >= plan.buckets[0]
        assert counts[fits].mean() > 0.85 * epochs * plan.epochs_per_source[name]


@property_test
@given(st.integers(0, 10**6), st.integers(0, 800), st.integers(0, 7))
def test_a_replacement_is_of_the_same_source_and_long_enough(step, row, attempt):
    lengths = [draw_lengths(7, 300), draw_lengths(8, 501)]
    plan = plan_of([source(lengths[0], "a"), source(lengths[1], "b")])
    everything = np.concatenate(lengths)
    fitting = [bucket for bucket in plan.buckets if bucket <= everything[row]]
    assume(fitting)
    other = plan.replacement(step, row, fitting[-1], attempt)
    assert (other < 300) == (row < 300)
    assert everything[other] >= fitting[-1]
    assert other == plan.replacement(step, row, fitting[-1], attempt)


def test_parse_sources():
    found = parse_sources("en:/a/en, old.csv:2, ru:gs://bucket/ru.csv:0.5,")
    assert found == {"en": ("/a/en, old.csv", 2.0), "ru": ("gs://bucket/ru.csv", 0.5)}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("en", "'en' is not name:manifest:weight"),
        ("en:2", "en:2 is not name:manifest:weight with"),
        (":a.csv:2", "':a.csv:2' is not name:manifest:weight"),
        ("en:a.csv:x", "en:a.csv:x is not .* with a weight above 0"),
        ("en:a.csv:0", "en:a.csv:0 is not .* with a weight above 0"),
        ("en:a.csv:nan", "en:a.csv:nan is not .* with a weight above 0"),
        ("en:a.csv:1,en:b.csv:1", "the name 'en' is given twice"),
        (" , ", "holds no entry"),
    ],
)
def test_malformed_sources_are_named(text, reason):
    with pytest.raises(ValueError, match=rf"^config\.data\.sources.*{reason}"):
        parse_sources(text)


# ---- what cannot be planned


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"num_buckets": 0}, "data.num_buckets: 0 is not within 1 .. 255"),
        ({"planned_devices": 0}, "data.planned_devices: 0 is not within"),
        ({"max_samples": 2639}, "data.max_samples: 2639 is not within 2640"),
        ({"max_batch_samples": 100}, "data.max_batch_samples: 100 is not within 2640"),
        ({"min_samples": 60_000}, r"data.min_samples: 60000 is not within 0 .. 50000"),
    ],
)
def test_arguments_out_of_range_are_named(changes, reason):
    with pytest.raises(ValueError, match=reason):
        plan_of(draw_lengths(0, 300), **changes)


def test_too_little_audio_for_a_batch_says_what_to_change():
    with pytest.raises(
        ValueError,
        match=r"^5 utterances .* even one of 5200 samples needs 304 rows .*planned_devices 16",
    ) as e:
        plan_of([6000] * 5, planned_devices=16, max_batch_samples=100_000)
    assert "\n" not in str(e.value)


def test_a_source_without_a_long_enough_utterance_is_named():
    with pytest.raises(ValueError, match="source tiny: none of its 2 utterances"):
        plan_of([source(draw_lengths(0, 300)), source([100, 200], "tiny")])


def test_a_weight_that_repeats_a_source_without_end_is_refused():
    with pytest.raises(ValueError, match=r"source tiny: .* lower its weight"):
        plan_of([source(draw_lengths(0, 3000)), source([30_000], "tiny", 5.0)])


def test_a_great_loss_is_warned_of(caplog):
    plan = plan_of([49_000] * 3 + [13_000] * 20, num_buckets=2)
    assert plan.lost_share > 0.25
    assert "lower data.planned_devices" in caplog.text


def test_long_recordings_are_warned_of(caplog):
    plan = plan_of([40_000] * 30 + [400_000] * 10, max_samples=50_000)
    assert (plan.too_long, plan.cropped_share) == (10, pytest.approx(3.5e6 / 5.2e6))
    assert "10 utterances are longer" in plan.describe()
    assert "67.3% of all audio lies beyond" in plan.describe()
    assert "67 % of all audio lies beyond the one crop" in caplog.text


TEN_MILLION = """
import resource, sys, time
import numpy as np
from spidr_jax.data.plan import make_plan
from spidr_jax.data.sources import Source
from typing import NamedTuple
class Lengths(NamedTuple):
    num_samples: np.ndarray
    fingerprint: str = ""
mapped = np.memmap(sys.argv[1], "<i8", "r")
np.asarray(mapped).sum()  # its pages count from the start
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.perf_counter()
plan = make_plan([Source("all", Lengths(mapped.view(np.ndarray)))], min_samples=2000,
    max_samples=320_000, num_buckets=8, max_batch_samples=3_800_000, planned_devices=16, seed=0)
plan.batch(0)
started = time.perf_counter() - start
start = time.perf_counter()
plan.batch(plan.batches_per_epoch)  # built since batch 0 was asked for, or waited for here
turned = time.perf_counter() - start
start = time.perf_counter()
plan.batch(plan.batches_per_epoch + 1)
print(started, turned, time.perf_counter() - start)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1000)
"""


@pytest.mark.slow
def test_ten_million_utterances_start_in_seconds_and_half_a_gigabyte(tmp_path):
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.normal(12.3, 3.8, 10_000_000), 0.2, 24.5) * 16_000
    lengths.astype("<i8").tofile(tmp_path / "lengths")
    command = [sys.executable, "-c", TEN_MILLION, str(tmp_path / "lengths")]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    started, turned, after, megabytes = map(float, output.split())
    assert started < 5
    assert turned < 2
    assert after < 0.05
    assert megabytes < 500


@pytest.fixture(scope="module")
def librispeech_like():
    """As many utterances and hours as LibriSpeech's 960 h: most near 15 s, the rest shorter."""
    random, count = np.random.default_rng(0), 281_241
    seconds = np.where(
        random.random(count) < 0.64, random.normal(14.6, 1.2, count), random.uniform(1.5, 14, count)
    )
    longer = random.random(count) < 0.01
    seconds = np.where(longer, random.uniform(17, 24.5, count), seconds)
    return (16_000 * seconds.clip(1.3, 24.5)).astype(np.int64)


def audio_of_a_step(plan):
    """Mean over an epoch's steps, and each bucket's, in samples."""
    by_bucket = np.array([plan.rows[bucket] * bucket for bucket in plan.buckets])
    weights = [plan.batches[bucket] for bucket in plan.buckets]
    return np.average(by_bucket, weights=weights), by_bucket


@pytest.mark.parametrize(
    ("planned_devices", "max_batch_samples", "spread"),
    [
        (4, 14_900_000, 0.02),
        (8, 7_450_000, 0.02),
        (16, 3_800_000, 0.03),
        (32, 1_955_000, 0.07),
        (64, 985_000, 0.07),
        (256, 335_000, 0.46),
    ],
)
def test_flags_that_keep_the_published_global_batch(
    librispeech_like, planned_devices, max_batch_samples, spread
):
    recipe = {"max_samples": 320_000, "num_buckets": 8}
    published = plan_of(librispeech_like, max_batch_samples=3_800_000, planned_devices=16, **recipe)
    plan = plan_of(
        librispeech_like,
        max_batch_samples=max_batch_samples,
        planned_devices=planned_devices,
        **recipe,
    )
    mean, by_bucket = audio_of_a_step(plan)
    wanted = audio_of_a_step(published)[0]
    assert mean == pytest.approx(wanted, rel=0.011)
    assert np.abs(by_bucket / wanted - 1).max() < spread
    assert plan.batches_per_epoch == pytest.approx(published.batches_per_epoch, rel=0.011)
    assert plan.lost_share == pytest.approx(published.lost_share, abs=0.001)
    assert all(rows % planned_devices == 0 for rows in plan.rows.values())
