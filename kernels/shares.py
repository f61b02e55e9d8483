"""Work on long arrays, shared out to the cores.

A product of OpenBLAS splits once into as many parts as there are cores, and all wait for the one whose core
another thread wanted (the trace's writer does).  Shares smaller than that are taken by whoever is free.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextvars import copy_context
from functools import cache

from . import blas

SHARE = 1 << 16  # numbers of an element-wise op that a thread takes at a time: a fraction of a millisecond


def share_out(work: Callable[[slice], object], count: int, size: int) -> None:
    """Call `work` with slices of `size` that cover range(count), on as many threads as products have.

    The last slices are begun first: under a causal mask they are the longest.  The slices are the same on
    every machine, and with them the results.
    """
    if count <= size:
        work(slice(0, count))
        return
    waiting = iter([slice(first, min(first + size, count)) for first in reversed(range(0, count, size))])

    def take() -> None:
        for span in waiting:
            work(span)

    helpers = min(blas.threads(), -(-count // size)) - 1
    with blas.one_thread_each():
        # NumPy's error settings belong to the context
        helping = [_helpers().submit(copy_context().run, take) for _ in range(helpers)]
        try:
            take()
        finally:
            begun = [helper for helper in helping if not helper.cancel()]  # only these are waited for
            wait(begun)
        for helper in begun:
            helper.result()


@cache
def _helpers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(blas.threads(), thread_name_prefix="shares")
