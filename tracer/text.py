"""Showing text that came from files, and sizes as people write them."""

import re
import unicodedata

from .errors import UserError


def visible(text: str, limit: int | None = None) -> str:
    """`text` with control, format and unassigned characters escaped, cut to `limit` with an ellipsis.

    Escape sequences of a terminal (and bidirectional overrides) inside a prompt or a name must show as what
    they are instead of acting.
    """
    shown = "".join(_escape(c) if unicodedata.category(c) in _HIDDEN else c for c in text)
    return shown if limit is None or len(shown) <= limit else shown[: limit - 1] + "…"


_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
_NAMED = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}


def _escape(character: str) -> str:
    if character in _NAMED:
        return _NAMED[character]
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def human_bytes(count: float) -> str:
    """1234567 -> 1.2 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def parse_bytes(text: str, option: str) -> int:
    """`800M`, `4G`, `4 GiB`, `1.5GB` as bytes; M and MB are powers of ten, MiB of two."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?\s*", text.lower())
    if match is None:
        raise UserError(f"{option} {text!r} is not a size such as 800M or 4G")
    number, unit, binary = match.groups()
    return int(float(number) * (1024 if binary else 1000) ** " kmgt".index(unit or " "))
