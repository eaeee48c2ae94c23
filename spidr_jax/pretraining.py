"""The pretraining task: SpidR or DinoSR put together for a run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from spidr_jax.data.audio import SAMPLE_RATE
from spidr_jax.data.plan import Plan, make_plan
from spidr_jax.data.planned_audio import PlannedAudio, probe
from spidr_jax.data.sources import open_sources
from spidr_jax.data.storage import is_remote
from spidr_jax.data.validation_sets import open_sets as open_validation
from spidr_jax.eval.metrics import Key, key_text
from spidr_jax.inference import evaluation
from spidr_jax.inference.datasets import open_sets
from spidr_jax.method import step
from spidr_jax.method.codebook import least_perplexity
from spidr_jax.method.config import Config
from spidr_jax.method.step import TrainState
from spidr_jax.train import distributed
from spidr_jax.train.task import EvalFn, Evaluation, StepFn, Task
from spidr_jax.weights.check import named
from spidr_jax.weights.load import read


class Pretraining(Task):
    """SpidR or DinoSR on the crops of a plan, validated on others, evaluated layer by layer."""

    shown = {  # noqa: RUF012
        "loss": "loss {:.3f}",
        "target_ppl": "target_ppl {:.1f}",
        "pred_ppl": "pred_ppl {:.1f}",
        "active_codes": "active {:.1f}",
        "audio_seconds_per_second": "audio {:,.0f} s/s",
    }
    rate = "audio_seconds_per_second"
    replicated = ("codebooks",)
    data: PlannedAudio
    validation: dict[str, PlannedAudio]

    def __init__(self, config: Config) -> None:
        """Open nothing yet."""
        self.config, self.step_config = config, config.step_config()
        self.phase_starts = (config.freeze_step,)
        self._collapse = Collapse(config.model.codebook_size)

    def open(self, num_devices: int) -> None:
        """See `Task.open`."""
        config, limits = self.config.data, self.config.data.limits()
        check_manifest(self.config)
        sources = open_sources(None if config.sources else config.manifest, config.sources)
        plan = make_plan(sources, seed=self.config.seed, **limits)
        for source in sources:
            probe(source)
        parts = num_devices * self.config.memory.accumulate
        _check_rows(
            plan,
            config.planned_devices,
            parts,
            f"memory.accumulate = {self.config.memory.accumulate}",
        )
        reading: dict[str, Any] = {
            "num_threads": config.num_threads,
            "max_bad_share": config.max_bad_share,
        }
        self.data = PlannedAudio(sources, plan, **reading)
        self.validation = {}
        for held_out in open_validation(self.config.validation, **limits):
            plan = held_out.plan
            _check_rows(plan, config.planned_devices, num_devices, held_out.name)
            self.validation[held_out.name] = PlannedAudio(
                [held_out.source], plan, num_batches=plan.batches_per_epoch, **reading
            )
        framing = self.config.model.framing
        self.evaluations = [
            Evaluation(
                each.name,
                evaluation.key(self.config.model, each),
                evaluation.describe(each),
                evaluation.make_measure(self.config.model, self.step_config.dtype, each),
                evaluation.show,
            )
            for each in open_sets(self.config.evaluation, framing.frames_per_second)
        ]

    def init_state(self, key: jax.Array) -> TrainState:
        """See `Task.init_state`."""
        return step.init_state(self.step_config, key)

    def adopt(self, state: TrainState, path: str) -> TrainState:
        """A new run's state with another model's parameters, teacher and codebooks.

        Args:
            state: state as drawn.
            path: a run, a checkpoint or a PyTorch file, as `weights.load.read` takes it.

        Raises:
            FileNotFoundError, ImportError: as `weights.load.read`.
            ValueError: it cannot be read, or its arrays are not those of this model.
        """
        try:
            model = read(path)
        except (OSError, ValueError) as error:
            raise type(error)(f"config.init_from: {error}") from None
        new = named(model.arrays)
        old = {name: getattr(state, name) for name in model.arrays}
        ours, theirs = ({n: x.shape for n, x in tree.items()} for tree in (named(old), new))
        if wrong := sorted(n for n in ours.keys() | theirs.keys() if ours.get(n) != theirs.get(n)):
            first = wrong[0]
            raise ValueError(
                f"config.init_from = {path!r}: {len(wrong)} arrays do not fit config.model, the "
                f"first {first}: {theirs.get(first, 'missing')} there, "
                f"{ours.get(first, 'none')} here"
            )
        leaves, structure = jax.tree.flatten(old)
        placed = [
            jax.device_put(new[name], x.sharding)
            for name, x in zip(named(old), leaves, strict=True)
        ]
        return state._replace(**jax.tree.unflatten(structure, placed))

    def enter(self, phase: int, state: TrainState) -> TrainState:
        """See `Task.enter`: the frozen phase has no moments of front end and projection."""
        return step.freeze(self.step_config, state)

    def make_step(self, phase: int) -> StepFn:
        """See `Task.make_step`."""
        return step.make_train_step(self.step_config, frozen=phase == 1)

    def make_eval_step(self) -> EvalFn:
        """See `Task.make_eval_step`."""
        return step.make_eval_step(self.step_config)

    def eval_state(self, state: TrainState) -> TrainState:
        """See `Task.eval_state`: freezing changes the structure of the moments."""
        return state._replace(opt_state=None)

    def flatten(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """See `Task.flatten`: `loss_per_codebook` [K] becomes `loss/5`, ... by layer."""
        flat = {}
        for name, value in metrics.items():
            if not name.endswith("_per_codebook"):
                flat[name] = np.asarray(value).item()
                continue
            short = name.removesuffix("_per_codebook")
            for layer, of_layer in zip(self.config.model.codebook_layers, value, strict=True):
                flat[key_text(Key("", layer, short))] = of_layer.item()
        return flat

    def amount(self, batch: dict[str, Any]) -> float:
        """Seconds of audio in a batch."""
        return float(batch["waveforms"].size / SAMPLE_RATE)

    def describe(self, state: TrainState) -> str:
        """See `Task.describe`."""
        student = sum(x.size for x in jax.tree.leaves(state.params))
        teacher = sum(x.size for x in jax.tree.leaves(state.teacher))
        model = self.config.model
        held_out = "".join(
            f"validation: {name}, {data.plan.batches_per_epoch} batches\n"
            for name, data in self.validation.items()
        )
        return (
            f"model: {model.model_type}, {student / 1e6:.1f} M parameters, teacher "
            f"{teacher / 1e6:.1f} M; {model.num_codebooks} codebooks of {model.codebook_size}\n"
            f"data: {self.data.plan.describe()}\n{held_out}"
        )

    def watch(self, step: int, metrics: Mapping[str, Any]) -> None:
        """See `Task.watch`: codebooks that collapse."""
        layers = self.config.model.codebook_layers
        names = {layer: key_text(Key("", layer, "target_ppl")) for layer in layers}
        self._collapse.check(step, {layer: metrics[name] for layer, name in names.items()})


def check_manifest(config: Config) -> None:
    """Check that a config names what to train on.

    Raises:
        ValueError: it names nothing.
        FileNotFoundError: the manifest does not exist, nor will the embedded corpus have it.
    """
    data = config.data
    if not (data.manifest or data.sources):
        raise ValueError(
            f"config.data.manifest = {data.manifest!r}: allowed is the path of a manifest, or "
            "data.sources instead of it"
        )
    manifest = data.manifest or ""
    will_be = bool(data.embedded_corpus) and manifest.startswith(data.embedded_corpus)
    elsewhere = bool(data.sources) or will_be or is_remote(manifest)
    if not (elsewhere or Path(manifest).expanduser().is_file()):
        raise FileNotFoundError(f"config.data.manifest = {data.manifest!r}: there is no such file")


def _check_rows(plan: Plan, planned_devices: int, parts: int, what: str) -> None:
    for length, rows in plan.rows.items():
        if rows % parts:
            raise ValueError(
                f"config.data.planned_devices = {planned_devices}: its {rows} rows of {length} "
                f"samples do not divide among the devices x {what}, {parts}; allowed is a multiple"
            )


class Collapse:
    """Warns of codebooks whose teacher agrees on a few codes, once each time that they fall."""

    def __init__(self, codebook_size: int) -> None:
        """Codebooks of V = `codebook_size` codes."""
        self._least = least_perplexity(codebook_size)
        self._size = codebook_size
        self._fallen: set[int] = set()

    def check(self, step: int, target_ppl: Mapping[int, float]) -> None:
        """Warn if the target perplexity of a layer's codebook, by layer, is far too low."""
        fallen = {layer for layer, value in target_ppl.items() if value < self._least}
        for layer in sorted(fallen - self._fallen):
            distributed.print0(
                f"warning: step {step}: the codebook of layer {layer} collapses: target perplexity "
                f"{target_ppl[layer]:.1f} of {self._size} (docs/training.md: Is it learning?)"
            )
        self._fallen = fallen
