"""Which checkpoints stay on disk, and what is read of them."""

import random
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from group import environment

from spidr_jax.train.checkpoint import Checkpoints
from spidr_jax.weights import orbax

# what TensorStore's threads say of a read that failed, at any later time
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

NAN = float("nan")
NOISE = np.random.default_rng(0).standard_normal(10_000)


@contextmanager
def checkpoints(folder: Path, **options: Any) -> Iterator[Checkpoints]:
    with closing(Checkpoints(folder, **options)) as opened:
        yield opened
        opened.wait()


def save(opened: Checkpoints, step: int, **metrics: float) -> None:
    opened.wait()
    opened.save(step, {"noise": jnp.asarray(NOISE)}, {"step": step, "plan": ""}, {}, metrics)


def steps(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("dev/loss", (3.0, 1.5, 2.0, 2.5)),  # a loss is best low
        ("dev/loss/12", (3.0, 1.5, 2.0, 2.5)),
        ("dev/target_ppl", (3.0, 90.0, 20.0, 30.0)),
        ("dev/active_codes/5", (3.0, 90.0, 20.0, 30.0)),
    ],
)
def test_the_best_stays_beside_the_last(
    tmp_path: Path, name: str, values: tuple[float, ...]
) -> None:
    with checkpoints(tmp_path, keep=1, best=name) as opened:
        assert opened.best() is None
        for step, value in enumerate(values, 1):
            opened.wait()
            assert opened.improves({name: value}) == (step <= 2)
            save(opened, step, **{name: value, "other": -value})
        opened.wait()
        assert opened.best() == (2, values[1])
    assert steps(tmp_path) == [2, 4]


def test_a_resumed_run_goes_on_from_the_best_on_disk(tmp_path: Path) -> None:
    with checkpoints(tmp_path, keep=1, best="dev/loss") as opened:
        for step, loss in ((1, 1.0), (2, 2.0)):
            save(opened, step, **{"dev/loss": loss})
    with checkpoints(tmp_path, keep=1, best="dev/loss") as opened:
        assert opened.best() == (1, 1.0)
        assert not opened.improves({"dev/loss": 1.5})
        save(opened, 3, **{"dev/loss": 1.5})
    assert steps(tmp_path) == [1, 3]
    with checkpoints(tmp_path, keep=1, best="dev/loss") as opened:
        assert opened.improves({"dev/loss": 0.5})
        save(opened, 4, **{"dev/loss": 0.5})
        save(opened, 5)
    assert steps(tmp_path) == [4, 5]


def test_checkpoints_without_the_metric_are_never_the_best(tmp_path: Path) -> None:
    with checkpoints(tmp_path, keep=1) as opened:
        save(opened, 1, **{"dev/loss": 1.0})  # nobody asked for the best yet
        assert opened.best() is None
        assert not opened.improves({"dev/loss": 0.1})
    with checkpoints(tmp_path, keep=1, best="dev/loss") as opened:
        save(opened, 2)
        save(opened, 3, **{"other/loss": 0.1})
        opened.wait()
        assert opened.best() is None
        assert not opened.improves({})
        assert not opened.improves({"dev/loss": NAN})
        save(opened, 4, **{"dev/loss": NAN})
        assert opened.improves({"dev/loss": 7.0})
        save(opened, 5, **{"dev/loss": 7.0})
        save(opened, 6, **{"dev/loss": NAN})
        opened.wait()
        assert opened.best() == (5, 7.0)
    assert steps(tmp_path) == [5, 6]


def test_every_so_many_steps_one_stays(tmp_path: Path) -> None:
    with checkpoints(tmp_path, keep=1, keep_every=4) as opened:
        for step in range(2, 12, 2):
            save(opened, step)
    assert steps(tmp_path) == [4, 8, 10]


def test_a_save_that_fails_in_the_background_does_not_cost_the_best(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with checkpoints(tmp_path, keep=1, best="dev/loss") as opened:
        for step, loss in ((1, 1.0), (2, 2.0)):
            save(opened, step, **{"dev/loss": loss})
        opened.wait()
        assert opened.best() == (1, 1.0)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        try:
            save(opened, 3, **{"dev/loss": 0.1})
            with pytest.raises(OSError, match="checkpoint 3"):
                opened.wait()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert opened.best() == (1, 1.0)
        assert opened.latest() == 2
        save(opened, 5, **{"dev/loss": 3.0})
    assert steps(tmp_path) == [1, 5]


RESTORED = """
import sys
from pathlib import Path
import jax
import numpy as np
from spidr_jax.train.checkpoint import Checkpoints
from spidr_jax.weights import orbax

mesh = jax.make_mesh((8,), ("data",))
rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
values = np.arange(80_000, dtype=np.float32).reshape(80, 1000)
checkpoints = Checkpoints(Path(sys.argv[1]), keep=1)
checkpoints.save(1, {"w": jax.device_put(values, rows)}, {}, {})
checkpoints.wait()
sizes, put = [], jax.device_put
jax.device_put = lambda x, *args, **options: sizes.append(np.size(x)) or put(x, *args, **options)
target = {"w": jax.ShapeDtypeStruct(values.shape, values.dtype, sharding=rows)}
restored = checkpoints.restore(1, target)["w"]
assert sizes == [10_000] * 8, sizes
assert restored.sharding == rows
np.testing.assert_array_equal(restored, values)
"""


def test_each_device_is_given_its_part_and_no_host_the_whole(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-c", RESTORED, str(tmp_path)], env=environment(8), check=True, timeout=120
    )


def test_no_flipped_bit_is_read_as_if_it_were_saved(tmp_path: Path) -> None:
    state = {"step": jnp.int32(1), "params": {"a": jnp.asarray(NOISE), "b": jnp.arange(500)}}
    with checkpoints(tmp_path, keep=1) as opened:
        opened.save(1, state, {"step": 1, "plan": ""}, {})
    files = [path for path in (tmp_path / "1" / "state").rglob("*") if path.is_file()]
    draw, outcomes = random.Random(0), []
    for number in range(60):
        file = (
            max(files, key=lambda path: path.stat().st_size) if number % 2 else draw.choice(files)
        )
        whole = file.read_bytes()
        place, bit = draw.randrange(len(whole)), 1 << draw.randrange(8)
        file.write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])
        for read in (restored, read_on_host):
            try:
                found = read(tmp_path, state)
            except ValueError as error:
                outcomes.append(str(error))
            else:
                jax.tree.map(np.testing.assert_array_equal, found, state["params"])
        file.write_bytes(whole)
    assert any("params.a" in text and "not as" in text for text in outcomes)
    assert all("\n" not in text for text in outcomes)


def restored(folder: Path, state: Any) -> Any:
    with closing(Checkpoints(folder, keep=1)) as opened:
        return opened.restore(1, state)["params"]


def read_on_host(folder: Path, state: Any) -> Any:
    return orbax.read(folder / "1", {"params"}.__contains__).state["params"]
