"""A model's fields as the PyTorch reference's config.json has them, both ways.

The reference keeps teacher, codebook decay and freeze step among the model's fields; here they are
sections of a run's config. Model fields have the same names on both sides.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from spidr_jax.method.teacher import TeacherConfig
from spidr_jax.model.checks import build
from spidr_jax.model.config import ModelConfig

MODEL_TYPES = ("spidr", "dinosr")
OWN_FIELDS = ("frontend", "encoder_layer", "head")  # of which the reference has but one each
_ARCHITECTURE = [
    field.name
    for field in dataclasses.fields(ModelConfig)
    if field.name not in ("model_type", *OWN_FIELDS)
]
_NOTOWN_FIELDS = ("dtype", "exclude_from_optimizer", "to_freeze")  # of its optimizer section
_TEACHER = {  # the reference's name -> TeacherConfig's
    "ema_start_decay": "decay",
    "ema_final_decay": "final_decay",
    "ema_final_step": "final_step",
    "ema_exclude_layers": "exclude_layers",
}
_SPIDR_TEACHER = {"ema_timescale": "timescale", "ema_threshold": "threshold"}
_OTHER = ("codebook_decay", "freeze_step")
Sections = dict[str, Any]


def from_reference(
    place: str, content: Mapping[str, Any] | None, model_type: str | None
) -> tuple[ModelConfig, Sections]:
    """The architecture and, of a run's config, the sections that the reference's file fixes.

    Args:
        place: the file, for messages.
        content: its parsed JSON: a model's fields, or sections with "model" among them; None
            where there is no such file, for the published architecture.
        model_type: "spidr" or "dinosr"; None to tell it from the content: a run's config says it,
            and only SpidR has ema_timescale and ema_threshold.

    Returns:
        The architecture, and "model", "teacher", "codebook", "freeze_step" and "optimizer" as far
        as the file gives them, under this package's names.

    Raises:
        ValueError: the model's type is not known, or a field is unknown or not usable.
    """
    content = content or {}
    fields = content.get("model", content)
    known = {*_ARCHITECTURE, *_TEACHER, *_SPIDR_TEACHER, *_OTHER, "model_type"}
    if not isinstance(fields, Mapping):
        raise ValueError(f"{place}: model is a {type(fields).__name__} instead of an object")
    if unknown := sorted(fields.keys() - known):
        raise ValueError(f"{place}: unknown model fields: {', '.join(unknown)}")
    kind = model_type or _model_type(place, content, fields)
    given = {name: fields[name] for name in _ARCHITECTURE if name in fields}
    if kind == "dinosr":
        given.setdefault("encoder_layer_drop", 0.05)  # the reference's default
    config = build(ModelConfig, {"model_type": kind, **given}, f"{place}: ")
    return config, {"model": dataclasses.asdict(config)} | _sections(kind, content, fields)


def to_reference(config: ModelConfig, run: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The content of config.json: `{"model": {...}}`, in the reference's names.

    Args:
        config: the architecture.
        run: the run's config as JSON holds it, where there is one.

    Raises:
        ValueError: the reference has no such front end, layer or head.
    """
    for name in OWN_FIELDS:
        value, allowed = getattr(config, name), getattr(ModelConfig, name)
        if value != allowed:
            raise ValueError(
                f"config.model.{name} = {value!r}: the PyTorch reference has only {allowed!r}"
            )
    run = run or {}
    fields = {name: getattr(config, name) for name in _ARCHITECTURE}
    teacher = dataclasses.asdict(TeacherConfig()) | run.get("teacher", {})
    names = _TEACHER | (_SPIDR_TEACHER if config.model_type == "spidr" else {})
    fields |= {theirs: teacher[ours] for theirs, ours in names.items()}
    if "codebook" in run:
        fields["codebook_decay"] = run["codebook"]["decay"]
    if "freeze_step" in run:
        fields["freeze_step"] = run["freeze_step"]
    return {"model": fields}


def _model_type(place: str, content: Mapping[str, Any], fields: Mapping[str, Any]) -> str:
    found = fields.get("model_type") or content.get("run", {}).get("model_type")
    if not found and fields.keys() & _SPIDR_TEACHER.keys():
        found = "spidr"
    if not found and fields.keys() >= {*_TEACHER}:
        found = "dinosr"
    if found not in MODEL_TYPES:
        raise ValueError(
            f"{place} does not say whether the model is SpidR or DinoSR: "
            "give --model-type (in Python: model_type) spidr or dinosr"
        )
    return found


def _sections(kind: str, content: Mapping[str, Any], fields: Mapping[str, Any]) -> Sections:
    sections: Sections = {}
    names = _TEACHER | (_SPIDR_TEACHER if kind == "spidr" else {})
    teacher = {ours: fields[theirs] for theirs, ours in names.items() if theirs in fields}
    if teacher:
        schedule = "exponential" if kind == "spidr" else "linear"
        sections["teacher"] = {"schedule": schedule} | teacher
    if "codebook_decay" in fields:
        sections["codebook"] = {"decay": fields["codebook_decay"]}
    if "freeze_step" in fields:
        sections["freeze_step"] = fields["freeze_step"]
    optimizer = content.get("optimizer", {}) if "model" in content else {}
    if given := {name: optimizer[name] for name in optimizer if name not in _NOTOWN_FIELDS}:
        sections["optimizer"] = given
    return sections
