"""CONTRIBUTING.md shows the experiments as they are tested here."""

import ast
import re
from pathlib import Path

HERE = Path(__file__).parent
SHARED = {"", "import runpy", "from pathlib import Path"}  # which the page shows once


def lines(text: str) -> list[str]:
    """The lines before `get_config` that the page shows of an experiment."""
    return [line for line in text.split("def get_config")[0].splitlines() if line not in SHARED]


def experiment(file: Path) -> str:
    """The config file that a test runs."""
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "EXPERIMENT":
            return str(ast.literal_eval(node.value))
    return ""


def test_recipes_are_the_experiments() -> None:
    page = (HERE.parent.parent / "CONTRIBUTING.md").read_text()
    shown = [lines(block) for block in re.findall("```python\n(.*?)```", page, re.DOTALL)]
    tested = [lines(text) for file in HERE.glob("test_*.py") if (text := experiment(file))]
    assert len(tested) > 10
    assert sorted(shown) == sorted(tested)
