"""A folder imports only folders below it, and nothing is imported by a string."""

import ast
from collections.abc import Iterator
from pathlib import Path

import spidr_jax

PACKAGE = Path(spidr_jax.__file__).parent
LAYERS = (
    *("ops", "data", "toy", "eval", "model", "train", "method", "weights", "inference"),
    *("pretraining", "report", "bench", "study"),
)  # lowest first; above them the commands


def imports(file: Path) -> Iterator[str]:
    """The folders and top-level modules of the package that a file imports."""
    for node in ast.walk(ast.parse(file.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        yield from (name.split(".")[1] for name in names if name.startswith("spidr_jax."))


def test_a_folder_imports_only_folders_below_it() -> None:
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert folders == set(LAYERS) - {"pretraining"}
    for height, layer in enumerate(LAYERS):
        for file in [PACKAGE / f"{layer}.py", *(PACKAGE / layer).rglob("*.py")]:
            wrong = set(imports(file)) - set(LAYERS[: height + 1]) if file.exists() else set()
            assert not wrong, f"{file.relative_to(PACKAGE)} imports {', '.join(sorted(wrong))}"


def test_nothing_of_the_package_is_imported_by_a_string() -> None:
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            name = getattr(node, "func", None)
            called = getattr(name, "attr", getattr(name, "id", ""))
            if called in ("import_module", "__import__"):
                argument = node.args[0]  # type: ignore[attr-defined]
                text = ast.unparse(argument)
                wrong = isinstance(argument, ast.JoinedStr) or "spidr_jax" in text
                assert not wrong, f"{file.relative_to(PACKAGE)}:{argument.lineno} imports {text}"
