"""Programs compiled ahead, the cache on disk, and a loop that waits for no step."""

import dataclasses
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
import tiny
from jax._src.array import ArrayImpl
from tiny import config as tiny_config
from tiny import write_corpus

from spidr_jax.data import planned_audio
from spidr_jax.data.pipeline import Shapes
from spidr_jax.data.planned_audio import PlannedAudio, audio_shapes
from spidr_jax.train import loop as train
from spidr_jax.train import placement
from spidr_jax.train import programs as compilation
from spidr_jax.train.loop import Run
from spidr_jax.train.programs import Programs


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"), utterances=24, seconds=0.5)


@pytest.fixture
def run(manifest: Path, tmp_path: Path) -> Iterator[Run]:
    """A run of two buckets."""
    config = tiny_config(manifest, tmp_path / "run")
    config.data.update(num_buckets=2, max_batch_samples=40_000)
    opened = tiny.open_run(config)
    assert len(opened.task.data.plan.buckets) == 2
    yield opened
    opened.checkpoints.close()


def open_programs(run: Run) -> Programs:
    return Programs(run.task, run.mesh, fsdp=False)


def data_of(lengths: list[int]) -> PlannedAudio:
    """Data whose batches have these lengths, over and over."""

    plan: Any = SimpleNamespace(
        rows={length: 10 * length for length in (7, 8, 9)},
        batches=dict(Counter(lengths)) | {9: 0},
        batch=lambda step: SimpleNamespace(num_samples=lengths[step % len(lengths)]),
        fingerprint="",
    )
    return PlannedAudio([], plan)


def abstract(length: int) -> dict[str, Any]:
    """A batch of two rows as shapes and types."""
    return {"x": jax.ShapeDtypeStruct((2, length), np.int16)}


def kind(length: int) -> Shapes:
    return {name: (x.shape, x.dtype) for name, x in abstract(length).items()}


def test_shapes_come_in_the_order_of_their_need() -> None:
    data = data_of([7, 7, 8])
    assert data.shapes(0, 3) == [audio_shapes(70, 7), audio_shapes(80, 8)]
    assert data.shapes(2, 9) == [audio_shapes(80, 8), audio_shapes(70, 7)]
    assert data.shapes(0, 2) == [audio_shapes(70, 7)]
    # what comes later than the look-ahead is there too, what never comes is not
    rare = data_of([7] * planned_audio._LOOKAHEAD + [8])
    assert rare.shapes(0, 100_000) == [audio_shapes(70, 7), audio_shapes(80, 8)]


def test_a_program_from_the_background_is_the_jitted_step(run: Run) -> None:
    task, mesh = run.task, run.mesh
    (shapes,) = task.data.shapes(0, 1)
    shape = shapes["waveforms"][0]
    rng = np.random.default_rng(0)
    batch = {
        "waveforms": rng.integers(-9_000, 9_000, shape).astype(np.int16),
        "mean": np.zeros(shape[0], np.float32),
        "inv_std": np.full(shape[0], 1e-4, np.float32),
    }
    batch = placement.put_batch(batch, mesh)
    key = jax.jit(lambda: jax.random.key(3), out_shardings=placement.replicated(mesh))()
    results = []
    with closing(open_programs(run)) as programs:
        programs.prepare([shapes], phase=0)
        jitted = placement.jit_step(task, mesh, fsdp=False)
        for step in (programs.get(batch, phase=0), jitted):
            state = placement.init_state(task, mesh, False, jax.random.key(0))
            results.append(jax.device_get(step(state, batch, key)))
    for a, b in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture
def fake_compiler(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Compilation that waits for `go` and notes the thread; a length of 13 fails."""
    seen: dict[str, Any] = {"go": threading.Event(), "begun": threading.Event(), "threads": {}}

    def fake(programs: Programs, shapes: Shapes, phase: int) -> Any:
        length = shapes["x"][0][1]
        seen["threads"][length, phase] = threading.current_thread().name
        if threading.current_thread() is not threading.main_thread():
            seen["begun"].set()
            assert seen["go"].wait(20)
        if length == 13:
            raise MemoryError("no room for 13")
        return length, phase

    monkeypatch.setattr(Programs, "_compile", fake)
    return seen


def test_what_has_not_begun_is_compiled_at_once_and_the_rest_left_out_at_the_end(
    run: Run, fake_compiler: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    with closing(open_programs(run)) as programs:
        programs.prepare(map(kind, (10, 11, 12)), phase=0)
        assert fake_compiler["begun"].wait(20)
        assert not programs.ready(abstract(11), 0)
        assert programs.get(abstract(11), 0) == (11, 0)  # though 10 is not done
        assert programs.ready(abstract(11), 0)
        threading.Timer(0.2, fake_compiler["go"].set).start()
    assert set(fake_compiler["threads"]) == {(10, 0), (11, 0)}
    assert fake_compiler["threads"][11, 0] == "MainThread"
    assert "waiting for a compilation to end" in capsys.readouterr().out


def test_an_error_in_the_background_is_raised_where_the_program_is_needed(
    run: Run, fake_compiler: dict[str, Any]
) -> None:
    fake_compiler["go"].set()
    with closing(open_programs(run)) as programs:
        programs.prepare(map(kind, (13, 14)), phase=1)
        assert programs.get(abstract(14), 1) == (14, 1)
        with pytest.raises(MemoryError, match="no room for 13"):
            programs.get(abstract(13), 1)


def test_a_run_compiles_each_shape_of_each_phase_once(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = []
    real = Programs._compile

    def note(programs: Programs, shapes: Shapes, phase: int) -> Any:
        compiled.append((shapes, phase))
        return real(programs, shapes, phase)

    monkeypatch.setattr(Programs, "_compile", note)
    config = dataclasses.replace(run.config, freeze_step=3)
    run.task.__init__(config)
    run.task.open(1)
    assert train.train(run, train.build_state(run)) == 0
    needed = [(shapes, 0) for shapes in run.task.data.shapes(0, 3)]
    needed += [(shapes, 1) for shapes in run.task.data.shapes(3, 6)]
    assert len(compiled) == len(needed)
    assert all(each in compiled for each in needed)


def test_no_step_is_waited_for_before_the_next_is_dispatched(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a run neither compiles nor saves: step 2 has another shape, 3 saves, 6 is the last."""
    dispatched, latest, early = [0], set[int](), list[int]()
    get, fetch = Programs.get, ArrayImpl._value.fget

    def counting_get(programs: Programs, *arguments: Any) -> Callable[..., Any]:
        program = get(programs, *arguments)

        def step(*arguments: Any) -> Any:
            results = program(*arguments)
            dispatched[0] += 1
            latest.clear()
            latest.update(map(id, jax.tree.leaves(results)))
            return results

        return step

    def counting_fetch(array: Any) -> Any:
        if id(array) in latest:
            early.append(dispatched[0])
        return fetch(array)

    monkeypatch.setattr(Programs, "get", counting_get)
    monkeypatch.setattr(ArrayImpl, "_value", property(counting_fetch))
    run = dataclasses.replace(run, config=dataclasses.replace(run.config, log_every=1))
    assert train.train(run, train.build_state(run)) == 0
    assert dispatched == [6]
    assert set(early) == {1, 3, 6}  # the counter works, and sees nothing elsewhere


@pytest.fixture
def cache_option() -> Iterator[None]:
    before = jax.config.values["jax_compilation_cache_dir"]
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    jax.config.update("jax_compilation_cache_dir", before)


def test_the_cache_lies_where_the_config_says_unless_jax_knows_another(
    tmp_path: Path, cache_option: None
) -> None:
    compilation.use_cache("")
    assert jax.config.values["jax_compilation_cache_dir"] is None
    compilation.use_cache(str(tmp_path / "a"))
    (kind,) = (tmp_path / "a").iterdir()
    assert jax.config.values["jax_compilation_cache_dir"] == str(kind)
    compilation.use_cache(str(tmp_path / "b"))  # as if JAX_COMPILATION_CACHE_DIR were set
    assert jax.config.values["jax_compilation_cache_dir"] == str(kind)
    assert not (tmp_path / "b").exists()


def test_a_cache_that_cannot_be_written_is_said_and_left_out(
    tmp_path: Path, cache_option: None, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    compilation.use_cache(str(tmp_path / "file"))
    assert jax.config.values["jax_compilation_cache_dir"] is None
    out = capsys.readouterr().out
    assert "warning: config.compilation_cache: " in out
    assert str(tmp_path / "file") in out
