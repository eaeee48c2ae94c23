"""The config of a pretraining run; the defaults are the published recipe for SpidR base."""

import dataclasses
from typing import Any

from spidr_jax.method.codebook import CodebookConfig
from spidr_jax.method.loss import LossConfig
from spidr_jax.method.masking import MaskingConfig
from spidr_jax.method.step import StepConfig
from spidr_jax.method.teacher import TeacherConfig
from spidr_jax.model.checks import check_fields, is_integer
from spidr_jax.model.config import ModelConfig
from spidr_jax.train.config import PRECISIONS, RunConfig, free, section
from spidr_jax.train.optim import OptimizerConfig

_SHORTEST = 2_640  # samples of a crop


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Training data, and how they are cut into batches."""

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
        checks = (
            ("min_samples", is_integer(self.min_samples, 0), "an integer from 0"),
            ("max_samples", is_integer(self.max_samples, floor), f"at least {floor} samples"),
            ("num_buckets", is_integer(self.num_buckets, 1, 255), "1 to 255"),
            (
                "max_batch_samples",
                is_integer(self.max_batch_samples, floor),
                f"at least {floor} samples",
            ),
            ("planned_devices", is_integer(self.planned_devices, 1, 2**20), "an integer from 1"),
            ("num_threads", is_integer(self.num_threads, 1, 1024), "an integer from 1 to 1024"),
            ("max_bad_share", 0 <= self.max_bad_share <= 1, "0 to 1"),
        )
        check_fields(self, checks)

    def limits(self) -> dict[str, Any]:
        """The arguments of `make_plan`."""
        lengths = ("min_samples", "max_samples", "num_buckets")
        names = (*lengths, "max_batch_samples", "planned_devices")
        return {name: getattr(self, name) for name in names}


@dataclasses.dataclass(frozen=True)
class MemoryConfig:
    """Options that save memory for time, with equal results."""

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
        frames, cosine = self.model.framing.num_frames(self.data.max_samples), self.optimizer
        if 2 * self.masking.mask_length > frames:
            raise ValueError(
                f"masking.mask_length = {self.masking.mask_length!r}: allowed is up to half of the "
                f"{frames} frames of a crop of data.max_samples = {self.data.max_samples}"
            )
        if cosine.scheduler == "cosine" and cosine.max_steps < self.steps:
            raise ValueError(
                f"optimizer.max_steps = {cosine.max_steps!r}: allowed is at least steps = "
                f"{self.steps}, beyond which the rate of cosine would rise again"
            )
        check_fields(self, [("freeze_step", is_integer(self.freeze_step, 0), "an integer from 0")])

    def step_config(self) -> StepConfig:
        """The sections that a training step needs."""
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
