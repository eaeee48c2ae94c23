"""One HTML page of a run, or of several over each other, that opens offline."""

from pathlib import Path


def draw(folder: Path) -> None:
    """Write `report.html` into a run's folder from its files alone; a failure only warns.

    The model is not asked, which would take longer, and memory on the run's devices;
    `python -m spidr_jax.report` does.
    """
    from spidr_jax.train.distributed import tell  # whose JAX the command on runs does not need

    try:
        from spidr_jax.report.page import write  # Matplotlib is loaded only where it draws

        out = folder / "report.html"
        write([folder], out, with_model=False)
        tell(f"report: {out}")
    except Exception as error:  # whatever it is, the run itself went well
        text = " ".join(f"{type(error).__name__}: {error}".split())
        tell(f"warning: no report of {folder}: {text[:300]}")
