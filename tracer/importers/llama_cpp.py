"""Logs of llama.cpp's evaluation callback: `llama-eval-callback`, `llama-debug` and relatives.

A log shows some values of each tensor, rounded.  They are kept as that: NaN where nothing was printed, and
in the conventions `partial`, `decimals`, `rounding` (how far a printed value may be off), by step `sum`,
`sum_sq` and `nan` (flat positions of printed NaNs), and `sum_of` (`all` values or just the `printed` ones).
"""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from ..dump import Dump, Piece, StepInfo
from ..errors import UserError
from ..format import Header
from ..ggml import ROTATION, activations
from ..importer import Options
from ..llama_log import HEADER, Node, load, printed_nans, read_nodes, read_prompt, sums_are_of_printed
from ..names import NAMES, Key
from ..printed import MAX_ELEMENTS
from ..translate import BY_WEIGHT, LLAMA_CPP, Target, own_key

FORMAT = "llama.cpp"
SUMMARY = "log of llama-eval-callback or llama-debug"

_WEIGHT = re.compile(r"(?:\w+#)?(?:blk\.(\d{1,5})\.)?(\w+)\.(?:weight|bias)(?:#\d+)?")
_READS = {"MUL_MAT": 0, "GET_ROWS": 0, "ADD": 1, "MUL": 1}  # ops that read a weight, and as which source
_SHOWS = ("VIEW", "RESHAPE", "PERMUTE", "TRANSPOSE")  # ops that show another node's numbers
_PROJECTS = ("MUL_MAT", "ADD", "CONT", "CLAMP")  # ops whose result is still q, k or v
_HEADS = ("token", "head", "dim")
_MAX_NANS = 100


def sniff(path: Path, head: bytes) -> bool:
    return b"debug" in head and HEADER.search(head.decode("utf-8", "replace")) is not None


def read(path: Path, options: Options) -> Dump:
    nodes, end = read_nodes(path)
    if not nodes:
        raise UserError(f"{path} has no line such as `common_debug_cb_eval: Qcur-0 = (f32) MUL_MAT(…) = …`")
    notes: list[str] = []
    kept = [node for node in nodes if _has_something(node)]
    if missing := len(nodes) - len(kept):
        notes.append(f"left out {missing} nodes of which the log shows nothing")
    scales = {key: spec.conventions for key, spec in options.expected().items() if key.name == "scores"}
    log = _Log(path, "printed" if sums_are_of_printed(path, kept) else "all", scales)
    steps: dict[int, StepInfo] = {}
    pieces: list[Piece] = []
    start = shown = 0
    for step, graph in enumerate(_passes(kept)):
        tokens = _tokens(graph)
        found = list(log.pieces(graph, step, start, tokens))
        pieces += found
        shown += len(graph) - len(found)
        steps[step] = StepInfo(tokens or None)
        start += tokens
    if shown:
        notes.append(f"left out {shown} nodes that show another one's values, or a tensor before its bias")
    ids, ends = read_prompt(path), accumulate(info.n_tokens or 0 for info in steps.values())
    known = ids if len(ids) in ends else ()
    settings = {"activation": activations(options.model)} if options.model else {}
    header = Header(engine="llama.cpp", settings=settings)
    return Dump(_same_ranks(pieces), steps, header, end=end, notes=notes, tokens=known)


def _has_something(node: Node) -> bool:
    return (node.printed or bool(node.sums)) and 0 < math.prod(node.sizes) <= MAX_ELEMENTS


def _passes(nodes: list[Node]) -> Iterator[list[Node]]:
    """The nodes of each evaluation of the graph: the first node that computes something begins a new one."""
    first = next((node.signature for node in nodes if node.op not in _SHOWS), None)
    current: list[Node] = []
    for node in nodes:
        if current and node.signature == first:
            yield current
            current = []
        current.append(node)
    if current:
        yield current


def _tokens(graph: list[Node]) -> int:
    """How many tokens an evaluation has: the rows looked up in the embedding; 0 where it shows none."""
    for node in graph:
        if node.op == "GET_ROWS" and node.sources and "token_embd.weight" in node.sources[0]:
            return node.sizes[1]
    return 0


@dataclass(frozen=True)
class _Log:
    """Turns the nodes of one evaluation into pieces."""

    path: Path
    sum_of: str
    scales: Mapping[Key, Mapping[str, Any]]  # of scores, where the model is known

    def pieces(self, graph: list[Node], step: int, start: int, tokens: int) -> Iterator[Piece]:
        chosen: dict[Key, tuple[Node, Target]] = {}
        count: dict[Key, int] = defaultdict(int)
        layer: int | None = None
        for node in graph:
            layer = node.title[0] if node.title[0] is not None else layer
            target = _target(node, layer)
            if target is None:
                continue
            if target.key.name not in NAMES:
                count[target.key] += 1
                if count[target.key] > 1:  # such as the two norms of a layer
                    name = f"{target.key.name}#{count[target.key]}"
                    target = Target(own_key(target.key.layer, name), target.axes)
            elif target.key in chosen and not _replaces(node, target, *chosen[target.key]):
                continue
            chosen[target.key] = node, target
            if node.sources[:1] == (ROTATION,) and node.sources[1].startswith("kqv_out"):
                chosen.pop(Key(layer, "attn"), None)  # it was still rotated
        for node, target in chosen.values():
            yield self._piece(node, target, step, start, tokens)

    def _piece(self, node: Node, target: Target, step: int, start: int, tokens: int) -> Piece:
        key, axes = target.key, target.axes
        rank = len(axes or NAMES[key.name].axes) if key.name in NAMES or axes else 4
        shape = node.shape[4 - rank :]
        values: Callable[[], np.ndarray] = partial(_values, self.path, node, shape)
        conventions, printed = self._said(node)
        if key.name == "kq":
            key, values = self._scores(key, values, start, conventions)
            printed = {}  # padding would be part of it
        if key.name in NAMES and axes[:1] != ("head",) and shape[0] < tokens:
            conventions["rows"] = "last"  # those that nobody reads are not computed in the last layer
            printed["computed_rows"] = shape[0]
        source = f"{node.name} ({node.op})"
        return Piece(step, key, shape, "float32", values, axes, source, node.op, conventions, printed)

    def _said(self, node: Node) -> tuple[dict[str, Any], dict[str, Any]]:
        """What holds for a node in every step, and what the log says of this one."""
        conventions: dict[str, Any] = {}
        if node.digits is not None:
            conventions = {"decimals": node.digits, "rounding": 0.5 * 10.0**-node.digits}
        if node.elided or not node.printed:
            conventions["partial"] = True
        if node.sums:
            conventions["sum_of"] = self.sum_of if node.elided else "all"
        nans = self._nans(node)[:_MAX_NANS]
        return conventions, {**node.sums, "nan": nans} if nans else dict(node.sums)

    def _scores(
        self, key: Key, raw: Callable[[], np.ndarray], start: int, conventions: dict[str, Any]
    ) -> tuple[Key, Callable[[], np.ndarray]]:
        """The raw product as scores, where the model tells how it is scaled; as it is where not."""
        conventions.pop("sum_of", None)
        scores = Key(key.layer, "scores")
        said = self.scales.get(scores, {})
        if not said.get("scale") or said.get("softcap"):
            return key, raw
        conventions |= {name: said[name] for name in ("scale", "window", "causal") if name in said}
        if "rounding" in conventions:
            conventions["rounding"] *= said["scale"]
        return scores, partial(_masked, raw, said, start)

    def _nans(self, node: Node) -> list[int]:
        """Where a NaN was printed: none where the sum is a number."""
        possible = node.printed and str(node.sums.get("sum", "nan")) == "nan"
        return printed_nans(self.path, node) if possible else []


def _values(path: Path, node: Node, shape: tuple[int, ...]) -> np.ndarray:
    if not node.printed:  # only the sum
        return np.full(shape, np.nan, np.float32)
    return load(path, node).reshape(shape)


def _masked(raw: Callable[[], np.ndarray], scale: Mapping[str, Any], start: int) -> np.ndarray:
    """What softmax sees [head, query, key], from the raw product: scaled, and masked where it was printed."""
    values = raw() * np.float32(scale["scale"])
    queries = start + np.arange(values.shape[1])[:, None]
    keys = np.arange(values.shape[2])
    masked = keys > queries
    if scale.get("window"):
        masked |= keys <= queries - scale["window"]
    return np.where(masked & ~np.isnan(values), -np.inf, values).astype(np.float32)


def _target(node: Node, layer: int | None) -> Target | None:
    """Which of our tensors a node is; None for one that only shows another node's values."""
    own_layer, title = node.title
    found = _by_weight(node) or LLAMA_CPP.get(f"{title} {node.op}")
    if found is None and node.op == "FLASH_ATTN_EXT":
        own_layer, found = layer, ("attn", _HEADS)
    if found is None and node.op in _SHOWS:
        return None
    if found is None and (title not in ("Qcur", "Kcur", "Vcur") or node.op in _PROJECTS):
        found = LLAMA_CPP.get(title)
    if found is None and title == "kq":
        found = ("kq", ("head", "query", "key+"))
    if found is None:
        return Target(own_key(own_layer, title))
    name, axes = found
    if match := _weight(node):
        own_layer = int(match[1]) if match[1] else own_layer
    rank = len(axes) or len(NAMES[name].axes)
    if any(size != 1 for size in node.shape[: 4 - rank]):  # several sequences, or another meaning
        return Target(own_key(own_layer, title))
    return Target(Key(own_layer, name), axes)


def _weight(node: Node) -> re.Match[str] | None:
    place = _READS.get(node.op, len(node.sources))
    return _WEIGHT.fullmatch(node.sources[place]) if place < len(node.sources) else None


def _by_weight(node: Node) -> tuple[str, tuple[str, ...]] | None:
    match = _weight(node)
    if match is None or match[2] not in BY_WEIGHT:
        return None
    name = BY_WEIGHT[match[2]]
    if name == "embd" and node.op != "GET_ROWS":
        name = "logits"  # the head is tied to the embedding
    if name in ("q", "k", "v"):
        return name, ("token", "head*dim")
    return name, _HEADS if name in ("q_norm", "k_norm") else ()


def _replaces(node: Node, target: Target, before: Node, old: Target) -> bool:
    """Whether a later node of the same name is the better one: it computes on, or shows the heads apart."""
    if node.op not in (*_SHOWS, "CONT"):
        return True
    return len(target.axes) > len(old.axes) and node.sizes[0] != before.sizes[0]


def _same_ranks(pieces: list[Piece]) -> list[Piece]:
    """Tensors of other names without the axes in front that are 1 in every step (two are always left)."""
    ranks: dict[Key, int] = defaultdict(lambda: 2)
    own = [piece for piece in pieces if piece.key.name not in NAMES and not piece.axes]
    for piece in own:
        used = next((place for place, size in enumerate(piece.shape) if size != 1), 4)
        ranks[piece.key] = max(ranks[piece.key], len(piece.shape) - used)

    def trimmed(piece: Piece) -> Piece:
        shape = piece.shape[-ranks[piece.key] :]
        return replace(piece, shape=shape, load=lambda: piece.load().reshape(shape))

    return [trimmed(piece) if piece.key in ranks and not piece.axes else piece for piece in pieces]
