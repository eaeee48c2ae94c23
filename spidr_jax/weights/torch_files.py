"""Files of the PyTorch side: .pt and .safetensors, and the config.json beside them.

torch and safetensors are optional and imported only where a file of theirs is met.
"""

import importlib
import json
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from spidr_jax.data.files import replacing
from spidr_jax.model.config import ModelConfig
from spidr_jax.weights import fairseq, torch_names
from spidr_jax.weights.reference_config import Sections, from_reference

_PREFIXES = r"(module\.|_orig_mod\.)+"  # of DistributedDataParallel and torch.compile
_STARTS = (b"PK\x03\x04", b"\x80")  # of torch.save: a zip archive, before PyTorch 1.6 a pickle
_PARTS = ("model", "optimizer", "scheduler", "scaler", "epoch", "step")


class TorchFile(NamedTuple):
    """A model read from a file: the reference's names, numpy arrays."""

    path: Path
    config: ModelConfig
    sections: Sections  # what the file says of a run's config
    state: dict[str, np.ndarray]  # without the step counter
    step: int  # finished steps, 0 where the file does not say
    training: Mapping[str, Any]  # the whole of a full training checkpoint, else empty


def read(path: Path, model_type: str | None = None) -> TorchFile:
    """Read the reference's form, a full training checkpoint of it, or the original DinoSR's.

    Args:
        path: the file; a config.json beside it holds the model's fields, without one they are
            the published ones.
        model_type: "spidr" or "dinosr", where neither config.json nor the file's form says it.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: torch or safetensors is needed; the message says what to install.
        ValueError: not such a file, or one that could run code, or without a known model type.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    content = _load_safetensors(path) if path.suffix == ".safetensors" else _load_pt(path)
    model = content["model"] if isinstance(content.get("model"), Mapping) else content
    if fairseq.is_fairseq(model):
        return _read_fairseq(path, content, model)
    config, sections = _config(path, model_type)
    state = {re.sub(f"^{_PREFIXES}", "", name): _numpy(path, name, x) for name, x in model.items()}
    if content is model and "mask_embedding" not in state:
        raise ValueError(f"{path}: holds no model: found {', '.join(sorted(state)[:5])}")
    step = state.pop(torch_names.STEP, np.zeros(1)).reshape(-1)[0]
    training = content if "optimizer" in content and content is not model else {}
    return TorchFile(path, config, sections, state, int(step), training)


def write(path: Path, state: Mapping[str, np.ndarray]) -> None:
    """Write a state dict, under `model` in a .pt file; the file appears whole or not at all.

    Raises:
        ImportError: torch or safetensors is needed; the message says what to install.
    """
    arrays = {name: np.ascontiguousarray(value) for name, value in state.items()}
    with replacing(path) as partial:
        if path.suffix == ".safetensors":
            need("safetensors.numpy").save_file(arrays, partial)
        else:
            torch = need("torch")
            torch.save(
                {"model": {n: torch.from_numpy(a.copy()) for n, a in arrays.items()}}, partial
            )


def need(name: str) -> Any:
    """Import an optional package, or raise an ImportError that says what to install."""
    try:
        return importlib.import_module(name)
    except ImportError:
        package = name.split(".")[0]
        raise ImportError(f"{package} is needed for such files: pip install {package}") from None


def _load_safetensors(path: Path) -> dict[str, Any]:
    safetensors = need("safetensors.numpy")
    try:
        return safetensors.load_file(path)
    except Exception as error:  # its SafetensorError is no public class of the numpy module
        raise ValueError(f"{path}: is no readable safetensors file: {error}") from None


def _load_pt(path: Path) -> Mapping[str, Any]:
    torch = need("torch")
    with path.open("rb") as file:
        start = file.read(12)
    if not start.startswith(_STARTS):
        raise ValueError(
            f"{path}: is no PyTorch file: it starts with {start!r}; allowed is what torch.save "
            "writes, a zip archive or (before PyTorch 1.6) a pickle"
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(_refusal(torch, path, error)) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = str(error).split("\n")[0] or type(error).__name__
        raise ValueError(f"{path}: is no readable PyTorch file: {reason}") from None
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: holds a {type(content).__name__} instead of a dict of tensors")
    return content


def _refusal(torch: Any, path: Path, error: Exception) -> str:
    """Say what a file holds beside tensors and how to be rid of it."""
    try:
        found = ", ".join(sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path)))
    except Exception:  # of a legacy file it cannot tell
        found = ""
    if not found:
        first = [line for line in str(error).split("\n") if "GLOBAL" in line or "global" in line]
        found = first[0].strip() if first else "no valid pickle of tensors"
    return (
        f"{path}: not loaded, because unpickling it could run any code: beside tensors it holds "
        f"{found}. If you trust where it comes from, re-save its tensors where those packages are "
        f'installed: python -c "import torch; c = torch.load({str(path)!r}, weights_only=False); '
        f'torch.save({{k: c[k] for k in {_PARTS} if k in c}}, {path.stem + "-clean.pt"!r})"'
    )


def _config(path: Path, model_type: str | None) -> tuple[ModelConfig, Sections]:
    file = path.with_name("config.json")
    if not file.is_file():
        return from_reference(f"{path} (no config.json beside it)", None, model_type)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: is no JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{file}: holds a {type(content).__name__} instead of an object")
    return from_reference(str(file), content, model_type)


def _read_fairseq(path: Path, content: Mapping[str, Any], model: Mapping[str, Any]) -> TorchFile:
    config, sections = _config(path, "dinosr")
    bias = "encoder.layers.0.self_attn.q_proj.bias" in model
    sections["model"]["encoder_qkv_bias"] = bias
    config = ModelConfig(**sections["model"])
    teacher = model.get(fairseq.TEACHER, {})
    student = {n: _numpy(path, n, v) for n, v in model.items() if n != fairseq.TEACHER}
    state = fairseq.rename(student, {n: _numpy(path, n, v) for n, v in teacher.items()})
    try:
        step = int(content["last_optimizer_state"]["state"][0]["step"])
    except (KeyError, TypeError, IndexError):
        step = 0
    return TorchFile(path, config, sections, state, step, {})


def _numpy(path: Path, name: str, value: Any) -> np.ndarray:
    """A tensor or array as numpy; half precision, which float32 holds exactly, becomes float32."""
    if isinstance(value, np.ndarray):
        return value.astype(np.float32) if value.dtype == np.float16 else value
    if not hasattr(value, "detach"):
        raise ValueError(f"{path}: {name} is a {type(value).__name__} instead of a tensor")
    value = value.detach()
    if value.is_floating_point() and value.element_size() < 4:
        value = value.float()
    return value.numpy()
