"""The text of llama.cpp's evaluation callback: the nodes that it names and the numbers that it prints.

The printer has changed several times (`examples/eval-callback`, `examples/debug`, `common/debug.cpp`): in
2024 `%8.4f` and the first three of each axis; then `%12.4f`, the first and last three and a `sum` of the
printed values; since August 2025 of all values, for some months with a `sum_sq`; since 2026 with other
indentation as `common_debug_cb_eval`.  Reading goes by brackets and not by columns: all are one format.
"""

import math
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .printed import MAX_ELEMENTS, Malformed, decimals, fill, nested
from .translate import split_layer

HEADER = re.compile(
    r"debug\w*:\s+(?P<name>.*?) = \((?P<type>\w+)\)\s+(?P<op>\w[\w ]*?)"
    r"\((?P<sources>.*)\) = \{(?P<sizes>\d+, \d+, \d+, \d+)\}"
)
_PROMPT = re.compile(r"number of input tokens = (\d{1,8})\s*$")
_SOURCE = re.compile(r"([^{},]*)\{[\d, ]*\}?")
_SUM = re.compile(r"(sum|sum_sq)\s*=\s*([-+.\w]+)")
_LAST = re.compile(r"\]|(?:sum|sum_sq)\s*=\s*(?:\S+\.\d{6}|\S*nan|\S*inf)")  # a whole line
# colours, and what --log-timestamps and --log-prefix put in front of every piece of a line
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_STAMP = re.compile(r"(\.\d{4})?\d+\.\d{2}\.\d{3}\.\d{3} (?=[IWED] )")
_LEVEL = re.compile(r"(?<![A-Za-z])[IWED] ")
_MAX_HEADER = 2048  # characters; a node's name has at most 64


@dataclass
class Node:
    """One node of the graph and where its values are in the file."""

    name: str
    op: str
    sources: tuple[str, ...]
    sizes: tuple[int, ...]  # ggml's four: fastest axis first
    start: int
    length: int = 0
    printed: bool = False
    elided: bool = False
    digits: int | None = None
    sums: dict[str, float | str] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.sizes[::-1]

    @property
    def title(self) -> tuple[int | None, str]:
        """`Qcur-3` is (3, Qcur), and so is `Qcur-3 (reshaped)`."""
        base, _, suffix = self.name.partition(" (")
        layer, title = split_layer(base)
        return layer, title if suffix in ("", "reshaped)") else f"{title} ({suffix}"

    @property
    def signature(self) -> tuple[str, str, tuple[str, ...]]:
        return self.name, self.op, self.sources


def read_nodes(path: Path) -> tuple[list[Node], str]:
    """Every node of a log in order, and how the log ended where that was not regular."""
    nodes: list[Node] = []
    end, at, line = "", 0, ""
    with path.open("rb") as file:
        for raw in file:
            at += len(raw)
            line = _clean(raw)
            if node := _header(line, at):
                nodes.append(node)
            elif "encountered NaN - aborting" in line:
                end = "llama.cpp stopped because a sum was NaN"
            elif nodes:
                _note(nodes[-1], line.strip(), at)
    if nodes and nodes[-1].printed and not end:
        try:
            load(path, nodes[-1])
        except Malformed:
            return nodes, f"the log is cut off inside {nodes.pop().name}"
    if nodes and not end and not (line.endswith("\n") or _LAST.fullmatch(line.strip())):
        end = "the log is cut off inside its last line"
    return nodes, end


def read_prompt(path: Path) -> tuple[int, ...]:
    """The ids that `llama-eval-callback` echoes in front of the nodes, one a line; none where it does not."""
    count = 0
    ids: list[int] = []
    with path.open("rb") as file:
        for raw in file:
            line = _clean(raw)
            last = (line.split() or [""])[-1]
            if match := _PROMPT.search(line):
                count, ids = int(match[1]), []
            elif ") = {" in line or (count and not (last.isdecimal() and len(last) < 10)):
                break
            elif count:
                ids.append(int(last))
                if len(ids) == count:
                    return tuple(ids)
    return ()


def _clean(raw: bytes) -> str:
    line = raw.decode("utf-8", "replace")
    if "\x1b" in line:
        line = _COLOUR.sub("", line)
    if "D " in line or "I " in line:
        line = _LEVEL.sub("", _STAMP.sub(r"\1", line))
    return line


def _header(line: str, at: int) -> Node | None:
    if ") = {" not in line or "debug" not in line or len(line) > _MAX_HEADER:
        return None
    match = HEADER.search(line)
    if match is None:
        return None
    sources = tuple(name.strip(" ,") for name in _SOURCE.findall(match["sources"]))
    sizes = tuple(int(size[:18]) for size in match["sizes"].split(", "))
    return Node(match["name"].strip(), match["op"].strip(), sources, sizes, at)


def _note(node: Node, text: str, at: int) -> None:
    """Take in a line below the header of `node`."""
    if text.startswith(("[", "]", "...")):
        node.length = at - node.start
        node.printed |= len(text) > 1 and text[0] == "["
        node.elided |= "..." in text
        if node.digits is None:
            node.digits = decimals(text)
    elif match := _SUM.fullmatch(text):
        try:
            value = float(match[2])
        except ValueError:
            return
        # JSON has no NaN
        node.sums[match[1]] = value if math.isfinite(value) else str(value)


def load(path: Path, node: Node, missing: float = np.nan) -> np.ndarray:
    """What was printed of a node, slowest axis first, `missing` in between; Malformed if it does not fit."""
    if math.prod(node.sizes) > MAX_ELEMENTS:
        raise Malformed(f"{node.name} has {math.prod(node.sizes)} elements: too many to show some of them")
    with path.open("rb") as file:
        file.seek(node.start)
        text = file.read(node.length)
    lines = (_clean(raw).strip() for raw in text.split(b"\n"))
    rows = (line for line in lines if line.startswith(("[", "]", "...")))
    try:
        return fill(nested(rows, 2), node.shape, missing)
    except Malformed as error:
        raise Malformed(f"{path}: the values of {node.name} ({node.op}) are damaged: {error}") from error


def printed_nans(path: Path, node: Node) -> list[int]:
    """The flat positions at which the log shows NaN."""
    return np.flatnonzero(np.isnan(load(path, node, missing=0.0))).tolist()


def sums_are_of_printed(path: Path, nodes: list[Node]) -> bool:
    """True where sums are those of the printed values, as until August 2025."""
    shown = [node for node in nodes if node.elided and isinstance(node.sums.get("sum"), float)]
    telling = False
    for node in shown[:40]:
        values = load(path, node)
        total = float(np.nansum(values, dtype=np.float64))
        error = np.count_nonzero(~np.isnan(values)) * 0.5 * 10.0 ** -(node.digits or 0)
        stated = float(node.sums["sum"])
        if abs(stated - total) > error + 1e-4 * float(np.nansum(np.abs(values), dtype=np.float64)):
            return False
        telling = telling or bool(abs(stated) > error)
    return telling
