"""The pretraining task: its config, and SpidR or DinoSR put together for a run."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from spidr_jax.data.audio import SAMPLE_RATE
from spidr_jax.data.plan import Plan, make_plan
from spidr_jax.data.planned_audio import PlannedAudio, probe
from spidr_jax.data.sources import open_sources
from spidr_jax.data.validation_sets import open_sets as open_validation
from spidr_jax.eval.metrics import Key, key_text
from spidr_jax.inference import evaluation
from spidr_jax.inference.datasets import open_sets
from spidr_jax.method import step
from spidr_jax.method.codebook import CodebookConfig
from spidr_jax.method.loss import LossConfig
from spidr_jax.method.masking import MaskingConfig
from spidr_jax.method.optim import OptimizerConfig
from spidr_jax.method.step import StepConfig, TrainState
from spidr_jax.method.teacher import TeacherConfig
from spidr_jax.model.checks import check_fields, is_integer
from spidr_jax.model.config import ModelConfig
from spidr_jax.train.config import PRECISIONS, RunConfig, free, section
from spidr_jax.train.monitors import Collapse
from spidr_jax.train.task import EvalFn, Evaluation, StepFn, Task
from spidr_jax.weights.check import named
from spidr_jax.weights.load import read

_SHORTEST = 2_640  # samples of a crop


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What a run trains on, and how it is cut into batches."""

    manifest: str | None = free(None)
    sources: str = free("")  # name:manifest:weight,... instead of one manifest
    embedded_corpus: str = free("")  # folder in which to make the embedded corpus
    min_samples: int = 2_000  # shorter utterances are left out
    max_samples: int = 320_000  # no crop is longer
    num_buckets: int = 8  # different lengths of a batch
    max_batch_samples: int = 3_800_000  # of one device
    planned_devices: int = 16  # the global batch is theirs, whatever runs it
    num_threads: int = free(8)  # that decode
    max_bad_share: float = free(0.01)  # of the rows read, that may be unreadable

    def __post_init__(self) -> None:
        floor = max(self.min_samples, _SHORTEST)
        check_fields(
            self,
            [
                ("min_samples", is_integer(self.min_samples, 0), "an integer from 0"),
                ("max_samples", self.max_samples >= floor, f"at least {floor} samples"),
                ("num_buckets", is_integer(self.num_buckets, 1, 255), "1 to 255"),
                ("max_batch_samples", self.max_batch_samples >= floor, f"at least {floor} samples"),
                (
                    "planned_devices",
                    is_integer(self.planned_devices, 1, 2**20),
                    "an integer from 1",
                ),
                ("num_threads", is_integer(self.num_threads, 1, 1024), "an integer from 1 to 1024"),
                ("max_bad_share", 0 <= self.max_bad_share <= 1, "0 to 1"),
            ],
        )

    def limits(self) -> dict[str, Any]:
        """The arguments of `make_plan`."""
        lengths = ("min_samples", "max_samples", "num_buckets")
        names = (*lengths, "max_batch_samples", "planned_devices")
        return {name: getattr(self, name) for name in names}


@dataclasses.dataclass(frozen=True)
class MemoryConfig:
    """What saves memory for time, with equal results."""

    accumulate: int = 1  # parts of a batch, one after the other; less rows at a time
    remat: bool = False  # compute layers again in the backward pass

    def __post_init__(self) -> None:
        check_fields(self, [("accumulate", is_integer(self.accumulate, 1), "an integer from 1")])


@dataclasses.dataclass(frozen=True)
class Config(RunConfig):
    """A pretraining run; the defaults are the published recipe for SpidR base."""

    freeze_step: int = 200_000  # front end and projection do not train after so many steps
    evaluation: str = free("")  # name:manifest:alignment:item,... for unit quality and ABX
    validation: str = free("")  # name:manifest,... to validate on
    corpus: str = free("")  # folder of which a config file makes other fields
    model: ModelConfig = section(ModelConfig)
    codebook: CodebookConfig = section(CodebookConfig)
    loss: LossConfig = section(LossConfig)
    teacher: TeacherConfig = section(TeacherConfig)
    masking: MaskingConfig = section(MaskingConfig)
    optimizer: OptimizerConfig = section(OptimizerConfig)
    data: DataConfig = section(DataConfig)
    memory: MemoryConfig = section(MemoryConfig, free=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model.framing.num_frames(_SHORTEST) < 1:
            layers = self.model.extractor_conv_layer_config
            raise ValueError(
                f"model.extractor_conv_layer_config = {layers!r}: allowed are convolutions that "
                f"give a frame for {_SHORTEST} samples (two flags of it add up)"
            )
        check_fields(self, [("freeze_step", is_integer(self.freeze_step, 0), "an integer from 0")])

    def step_config(self) -> StepConfig:
        """What a training step computes."""
        return StepConfig(
            model=self.model,
            masking=self.masking,
            optimizer=self.optimizer,
            teacher=self.teacher,
            codebook=self.codebook,
            loss=self.loss,
            freeze_step=self.freeze_step,
            dtype=PRECISIONS[self.precision],
            accumulate=self.memory.accumulate,
            remat=self.memory.remat,
        )


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
        sources = open_sources(config.manifest, config.sources)
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
        self.evaluations = [
            Evaluation(
                each.name,
                evaluation.key(self.config.model, each),
                evaluation.describe(each),
                evaluation.make_measure(self.config.model, self.step_config.dtype, each),
                evaluation.show,
            )
            for each in open_sets(self.config.evaluation)
        ]

    def init_state(self, key: jax.Array) -> TrainState:
        """See `Task.init_state`."""
        return step.init_state(self.step_config, key)

    def adopt(self, state: TrainState, path: str) -> TrainState:
        """A new run's state with another model's parameters, teacher and codebooks.

        Args:
            state: as drawn.
            path: what `weights.load.read` takes: a run, a checkpoint, a PyTorch file.

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
        ValueError: it names nothing, or two things.
        FileNotFoundError: the manifest does not exist, nor will the embedded corpus have it.
    """
    data = config.data
    if bool(data.manifest) == bool(data.sources):
        raise ValueError(
            f"config.data.manifest = {data.manifest!r}: allowed is the path of a manifest, or "
            "data.sources instead of it"
        )
    if data.manifest and not data.embedded_corpus and not Path(data.manifest).is_file():
        raise FileNotFoundError(f"config.data.manifest = {data.manifest!r}: there is no such file")


def _check_rows(plan: Plan, planned_devices: int, parts: int, what: str) -> None:
    for length, rows in plan.rows.items():
        if rows % parts:
            raise ValueError(
                f"config.data.planned_devices = {planned_devices}: its {rows} rows of {length} "
                f"samples do not divide among the devices x {what}, {parts}; allowed is a multiple"
            )
