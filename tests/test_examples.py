"""Every example runs, and every `trace` command that the README shows is one that exists."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted([*ROOT.glob("examples/[0-9]*.sh"), *ROOT.glob("examples/[0-9]*.py")])
EXPECTED = {"02_find_a_fault.sh": ("rope_pairing", "q_rope")}


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run as a newcomer would, with this environment's `trace` and `python` first on the path."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path}
    return subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_example_runs(smollm2: Path, tmp_path: Path, example: Path) -> None:
    done = run("sh" if example.suffix == ".sh" else sys.executable, example, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    for text in EXPECTED.get(example.name, ()):
        assert text in done.stdout


def readme_commands() -> list[str]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return sorted(set(re.findall(r"(?:`|^\$ |, )trace ([a-z]+)", text, re.MULTILINE)))


@pytest.mark.parametrize("name", readme_commands())
def test_commands_of_the_readme_exist(tmp_path: Path, name: str) -> None:
    done = run("trace", name, "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Usage: trace " in done.stdout
