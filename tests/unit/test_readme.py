"""The README says what is so."""

import ast
import json
import re
import subprocess
from importlib import import_module
from pathlib import Path

import pytest
from pydantic_core import PydanticUndefined

from contracts.sealing import public_key_of
from service.cli.keys import keygen
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


def test_the_keys_it_has_a_shell_read_are_those_that_were_made(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    [reading] = re.findall(r"^set -a; \. \./keys\.env; set \+a$", README, flags=re.MULTILINE)
    keygen(as_json=False)
    made = capsys.readouterr().out
    (tmp_path / "keys.env").write_text(made)
    show = 'python3 -c "import json, os; print(json.dumps(dict(os.environ)))"'

    done = subprocess.run(  # noqa: S602 - the README's own line
        f"{reading}; {show}", shell=True, cwd=tmp_path, capture_output=True, text=True, check=True
    )

    environment = json.loads(done.stdout)
    assert f"SEALING_KEY={environment['SEALING_KEY']}\nSTORAGE_KEYS={environment['STORAGE_KEYS']}\n" in made
    assert public_key_of(environment["SEALING_KEY"]) in made
