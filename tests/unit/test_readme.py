"""The README says what is so."""

import ast
import re
from importlib import import_module
from pathlib import Path

from pydantic_core import PydanticUndefined

from service.config import Settings

README = (Path(__file__).parents[2] / "README.md").read_text()


def test_every_setting_stands_in_the_table_with_its_default() -> None:
    rows = dict(re.findall(r"^\| `([A-Z_]+)` \| (\S+) \|", README, flags=re.MULTILINE))

    def shown(default: object) -> str:
        if default is PydanticUndefined:
            return "required"
        if default is None:
            return "unset"
        return str(default).lower() if isinstance(default, bool) else str(default)

    assert rows == {name.upper(): shown(field.default) for name, field in Settings.model_fields.items()}


def test_every_example_is_python_and_imports_what_there_is() -> None:
    examples = re.findall(r"^```python\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)

    assert examples
    for example in examples:
        tree = ast.parse(example)
        compile(example, "README.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        for imported in (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)):
            if (imported.module or "").split(".")[0] in ("contracts", "service"):
                module = import_module(str(imported.module))
                assert all(hasattr(module, name.name) for name in imported.names), ast.unparse(imported)


def test_every_file_it_links_to_is_there() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", README)

    assert links
    assert all((Path(__file__).parents[2] / link).exists() for link in links)
