"""Arrays that are parts of memory-mapped files: where they lie, and letting go of their pages."""

import mmap

import numpy as np


def is_mapped(array: np.ndarray) -> bool:
    """Whether an array is a view of a memory-mapped file."""
    owner = array.base
    while owner is not None and not isinstance(owner, mmap.mmap):
        owner = getattr(owner, "base", None)
    return owner is not None


def mapping(array: np.ndarray) -> tuple[mmap.mmap, int] | None:
    """The memory-mapped file that an array is a view of, and where in it it begins; None where it is not."""
    whole, owner = array, array.base
    while owner is not None and not isinstance(owner, mmap.mmap):
        whole = owner if isinstance(owner, np.ndarray) else whole
        owner = getattr(owner, "base", None)
    return (owner, array.ctypes.data - whole.ctypes.data) if isinstance(owner, mmap.mmap) else None


def give_back(block: np.ndarray) -> None:
    """Tell the kernel that the mapped pages under `block` are done with, so that they don't pile up."""
    mapped = mapping(block)
    if mapped is None or not block.size:
        return
    file, offset = mapped
    first, last = np.lib.array_utils.byte_bounds(block)
    start = -(-offset // mmap.PAGESIZE) * mmap.PAGESIZE
    length = offset + last - first - start
    if length >= mmap.PAGESIZE:
        file.madvise(mmap.MADV_DONTNEED, start, length)
