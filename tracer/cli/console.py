"""Terminal output: rich on a terminal, plain when piped; JSON for machines."""

import json
import math
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ..errors import UserError


def stdout() -> Console:
    """The console for results.  Markup is off: text of files must never be taken for it."""
    width = None if sys.stdout.isatty() else 160
    return Console(markup=False, highlight=False, emoji=False, width=width, soft_wrap=False)


def stderr() -> Console:
    """The console for progress and notes, so that piped results stay clean."""
    return Console(stderr=True, markup=False, highlight=False, emoji=False)


def table(*columns: str, title: str | None = None) -> Table:
    """A table in the house style: columns that start with `>` are right-aligned."""
    made = Table(title=title, title_justify="left", box=None, header_style="bold", pad_edge=False)
    for column in columns:
        made.add_column(column.removeprefix(">"), justify="right" if column.startswith(">") else "left")
    return made


def write_json(data: Any, target: str) -> None:
    """Write strict JSON (NaN and infinities as null) to a file, or to standard output for `-`."""
    text = json.dumps(_strict(data), indent=2, ensure_ascii=False) + "\n"
    if target == "-":
        sys.stdout.write(text)
        return
    write_text(text, target)


def write_text(text: str, target: str) -> None:
    try:
        Path(target).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror}") from error


def _strict(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(item) for item in value]
    if hasattr(value, "item") and not isinstance(value, str):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
