"""The structure of an HDF5 file, laid out at once: groups, contiguous datasets and their attributes.

HDF5's library makes one object after the other, which takes it ten times as long for a trace's 633 datasets.
Everything has its earliest form in the HDF5 File Format Specification (superblock 0, object headers and
attributes of version 1, groups as symbol tables), which every HDF5 reads.
"""

import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

SUPERBLOCK = 96  # bytes
UNDEFINED = 2**64 - 1  # the address of what is nowhere
SYMBOLS = 8  # links in a node of a group's B-tree
STRINGS = 4096  # variable-length strings in a heap of their own
# types of messages in an object header
DATASPACE, DATATYPE, FILL, LAYOUT, ATTRIBUTE, SYMBOL_TABLE = 0x01, 0x03, 0x05, 0x08, 0x0C, 0x11
NO_FILL = struct.pack("<BBBBI", 2, 1, 1, 1, 0)  # allocated early, never filled, the default value
LABEL = bytes.fromhex("19010100 10000000 10000000 01000000 00000800")  # a variable-length UTF-8 string


class Dataset(NamedTuple):
    """A contiguous dataset: `kind` is its datatype as a message has it (`h5py.h5t.TypeID.encode`).

    `texts` are its attributes, `labels` the names of its dimensions.
    """

    kind: bytes
    shape: tuple[int, ...] = ()
    texts: Mapping[str, str] = {}
    labels: tuple[str, ...] = ()

    @property
    def itemsize(self) -> int:
        return struct.unpack_from("<I", self.kind, 4)[0]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.itemsize


class Laid(NamedTuple):
    """What the file begins with, where each dataset's bytes lie (0: it has none), and the file's size."""

    structure: bytes
    offsets: dict[str, int]
    size: int


def lay_out(datasets: Mapping[str, Dataset], texts: Mapping[str, str], alignment: int) -> Laid:
    """A file of datasets, by their paths from the root, whose attributes are `texts`.

    Their bytes lie in this order, each on a multiple of `alignment`.  ValueError where HDF5 has no room for
    an attribute, or where a path is that of a group, too.
    """
    root = _tree(datasets)
    image, keys = bytearray(SUPERBLOCK), _keys_of_nodes(root)
    labels = _heap(image, [label for dataset in datasets.values() for label in dataset.labels])
    fields = {path: _dataset(image, dataset, labels) for path, dataset in datasets.items()}
    headers = {path: header for path, (header, _) in fields.items()}
    symbols = _group(image, root, headers, keys, texts)
    offsets, end = {}, len(image)
    for path, dataset in datasets.items():
        start = -(-end // alignment) * alignment
        offsets[path] = start if dataset.nbytes else 0
        struct.pack_into("<Q", image, fields[path][1], start if dataset.nbytes else UNDEFINED)
        end = start + dataset.nbytes if dataset.nbytes else end
    image[:SUPERBLOCK] = _superblock(symbols, keys, end)
    return Laid(bytes(image), offsets, end)


def _tree(paths: Mapping[str, Dataset]) -> dict[str, Any]:
    """Groups as dictionaries of their members; a dataset is its path.

    Paths are taken as the library does: it ends them at a NUL, and `//` and `/./` are no more than `/`.
    """
    root: dict[str, Any] = {}
    for path in paths:
        names = [name for name in path.split("\0")[0].split("/") if name not in ("", ".")]
        if not names:
            raise ValueError(f"{path!r} is the root")
        *groups, name = names
        at = root
        for group in groups:
            at = at.setdefault(group, {})
            if not isinstance(at, dict):
                raise ValueError(f"{path!r} lies below a dataset")
        if name in at:
            raise ValueError(f"{path!r} is the name of something else, too")
        at[name] = path
    return root


def _superblock(symbols: "_Symbols", keys: int, end: int) -> bytes:
    root = struct.pack("<QQIIQQ", 0, symbols.header, 1, 0, symbols.nodes, symbols.names)
    sizes = struct.pack("<4xBBBxHHI", 0, 8, 8, SYMBOLS // 2, keys // 2, 0)
    return b"\x89HDF\r\n\x1a\n" + sizes + struct.pack("<QQQQ", 0, UNDEFINED, end, UNDEFINED) + root


# ---- objects: each goes to the end of the image


def _add(image: bytearray, data: bytes) -> int:
    """Append bytes; gives their address."""
    address = len(image)
    image += _padded(data)
    return address


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 8)


def _message(kind: int, body: bytes) -> bytes:
    body = _padded(body)
    if len(body) >= 1 << 16:
        raise ValueError(f"a description of {len(body)} bytes: HDF5 has room for 64 KiB")
    return struct.pack("<HHI", kind, len(body), 0) + body


def _header(image: bytearray, messages: Sequence[bytes]) -> int:
    body = b"".join(messages)
    return _add(image, struct.pack("<BxHIIxxxx", 1, len(messages), 1, len(body)) + body)


def _dataset(image: bytearray, dataset: Dataset, labels: Iterator[bytes]) -> tuple[int, int]:
    """The address of a dataset's header, and of the field for the address of its bytes."""
    kind, space = _message(DATATYPE, dataset.kind), _message(DATASPACE, _space(dataset.shape))
    layout = _message(LAYOUT, struct.pack("<BBQQ", 3, 1, 0, dataset.nbytes))
    messages = [layout, space, kind, _message(FILL, NO_FILL)]
    if dataset.labels:
        references = b"".join(next(labels) for _ in dataset.labels)
        shape = (len(dataset.labels),)
        messages.append(_message(ATTRIBUTE, _attribute("DIMENSION_LABELS", LABEL, shape) + references))
    messages += [_text(name, text) for name, text in dataset.texts.items()]
    header = _header(image, messages)
    return header, header + 16 + 8 + 2  # behind the header's head, the message's head, version and class


def _space(shape: tuple[int, ...]) -> bytes:
    return struct.pack(f"<BBBxxxxx{len(shape)}Q", 1, len(shape), 0, *shape)


@lru_cache(1024)
def _text(name: str, text: str) -> bytes:
    """An attribute that is a UTF-8 string of its own length."""
    data = text.encode("utf-8", "backslashreplace") or b"\0"
    kind = struct.pack("<BBxxI", 0x13, 0x11, len(data))  # padded with NUL; UTF-8
    return _message(ATTRIBUTE, _attribute(name, kind, ()) + data)


@lru_cache(64)
def _attribute(name: str, kind: bytes, shape: tuple[int, ...]) -> bytes:
    """An attribute up to its value."""
    called, space = name.encode() + b"\0", _space(shape)
    sizes = struct.pack("<BxHHH", 1, len(called), len(kind), len(space))
    return sizes + _padded(called) + _padded(kind) + _padded(space)


def _heap(image: bytearray, strings: Sequence[str]) -> Iterator[bytes]:
    """Global heaps with the strings; gives how an attribute refers to each of them."""
    references = []
    for first in range(0, len(strings), STRINGS):
        texts = [text.encode() for text in strings[first : first + STRINGS]]
        objects = b"".join(
            struct.pack("<HHIQ", index, 1, 0, len(text)) + _padded(text)
            for index, text in enumerate(texts, start=1)
        )
        free = max(4096 - 16 - len(objects), 16)  # a heap has at least 4 KiB
        head = struct.pack("<4sB3xQ", b"GCOL", 1, 16 + len(objects) + free)
        heap = _add(image, head + objects + struct.pack("<HHIQ", 0, 0, 0, free) + bytes(free - 16))
        references += [
            struct.pack("<IQI", len(text), heap, index) for index, text in enumerate(texts, start=1)
        ]
    return iter(references)


# ---- groups


class _Symbols(NamedTuple):
    """The addresses of a group's header, of the B-tree of its links and of the heap of their names."""

    header: int
    nodes: int
    names: int


def _group(
    image: bytearray,
    members: Mapping[str, Any],
    headers: Mapping[str, int],
    keys: int,
    texts: Mapping[str, str] = {},
) -> _Symbols:
    links = {
        name.encode(): headers[member]
        if isinstance(member, str)
        else _group(image, member, headers, keys).header
        for name, member in members.items()
    }
    names, places = bytearray(8), {}
    for link in sorted(links):
        places[link] = len(names)
        names += _padded(link + b"\0")
    data = _add(image, bytes(names))
    heap = _add(image, struct.pack("<4sxxxxQQQ", b"HEAP", len(names), 1, data))  # 1: nothing is free
    symbols = [(place, links[link]) for link, place in places.items()]
    tree = _nodes(image, symbols, keys)
    table = _message(SYMBOL_TABLE, struct.pack("<QQ", tree, heap))
    return _Symbols(_header(image, [table, *(_text(*text) for text in texts.items())]), tree, heap)


def _nodes(image: bytearray, symbols: Sequence[tuple[int, int]], keys: int) -> int:
    """A B-tree of links, which are ordered by name: (place of the name in the heap, address)."""
    children = [b""]  # from the second on: a node's address, and its last name as the key behind it
    for first in range(0, len(symbols), SYMBOLS):
        part = symbols[first : first + SYMBOLS]
        entries = b"".join(struct.pack("<QQ24x", *symbol) for symbol in part)
        node = struct.pack("<4sBxH", b"SNOD", 1, len(part)) + entries.ljust(SYMBOLS * 40, b"\0")
        children.append(struct.pack("<QQ", _add(image, node), part[-1][0]))
    head = struct.pack("<4sBBHQQ", b"TREE", 0, 0, len(children) - 1, UNDEFINED, UNDEFINED)
    body = bytes(8) + b"".join(children)  # the first key: the empty name
    return _add(image, head + body.ljust(8 + 16 * keys, b"\0"))


def _keys_of_nodes(root: Mapping[str, Any]) -> int:
    """How many nodes a group's B-tree has room for: 32 as usual, or as many as the largest group needs."""
    groups, most = [root], 0
    while groups:
        group = groups.pop()
        most = max(most, len(group))
        groups += [member for member in group.values() if isinstance(member, dict)]
    nodes = -(-most // SYMBOLS)
    return max(32, nodes + nodes % 2)
