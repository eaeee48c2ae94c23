"""A config file, some of whose fields get other values by FIELD=VALUE, as by a run's flags."""

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags


def parse_fields(texts: Sequence[str], option: str) -> dict[str, str]:
    """The values of fields, as written.

    Args:
        texts: texts FIELD=VALUE, such as "codebook.decay=0.9".
        option: command-line option that they come from.

    Raises:
        ValueError: one is something else, or a field is given twice.
    """
    found: dict[str, str] = {}
    for text in texts:
        field, equals, value = text.partition("=")
        if not re.fullmatch(r"[A-Za-z_]\w*(\.\w+)*", field) or not equals:
            raise ValueError(f"{option} {text}: allowed is FIELD=VALUE, as codebook.decay=0.9")
        if field in found:
            raise ValueError(f"{option} {text}: the field is given twice")
        found[field] = value
    return found


def as_flags(file: str, values: Mapping[str, str]) -> list[str]:
    """The flags of `spidr_jax.main` for a config file and values of its fields."""
    return [f"--config={file}", *(f"--config.{field}={text}" for field, text in values.items())]


def read(file: str, values: Mapping[str, str]) -> ConfigDict:
    """The config, not checked, that these flags give a run.

    Raises:
        ValueError: in one line, a field that there is not or a value of another type.
        FileNotFoundError: there is no such file.
    """
    if not Path(file.partition(":")[0]).is_file():
        raise FileNotFoundError(f"--config {file}: there is no such file")
    argv = ["", *as_flags(file, values)]
    known = flags.FlagValues()
    sys.modules.pop("config_config", None)  # or what a file lacks would be the last one's
    holder = config_flags.DEFINE_config_file("config", flag_values=known, sys_argv=argv)
    try:
        known(argv)
    except (flags.Error, TypeError, SyntaxError) as error:
        raise ValueError(str(error)) from None
    except (LookupError, AttributeError) as error:  # no such field; it may be told in an inner one
        told = ", ".join([file, *(f"{field}={text}" for field, text in values.items())])
        why = " ".join(str(innermost(error)).split())
        raise ValueError(f"{told}: {why}") from None
    return holder.value


def innermost(error: Exception) -> Any:
    """What an error says: ml_collections wraps that of an unknown field in others."""
    said: Any = error
    while isinstance(said, Exception) and said.args:
        said = said.args[-1]
    return said
