"""Work handed over to one thread: carried out in order, with a bound on the bytes that wait."""

import queue
import threading
from collections.abc import Callable
from typing import Any

from .packed import Pending

HAND_OVER = 256 * 1024  # bytes: an item for every small array would cost more than its writing

Action = tuple[Callable[..., None], tuple[Any, ...]]


class Background:
    """A thread that carries out actions.  After the first error the others are dropped; `error` has it."""

    def __init__(self, name: str, buffer_bytes: int):
        self.error: Exception | None = None
        self._batch: list[Action] = []
        self._batch_bytes = 0
        self._free = buffer_bytes
        # bytes that are no longer needed; an interrupt from the keyboard could leave a lock closed
        self._done: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._queue: queue.SimpleQueue = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._drain, name=name, daemon=True)
        self._thread.start()

    def put(self, action: Callable[..., None], *arguments: Any, nbytes: int = 0, soon: bool = True) -> None:
        """Have `action(*arguments)` carried out, which keeps `nbytes` alive until then.

        Waits while more than the buffer's bytes are on their way.  What need not be soon is gathered first.
        To be called by one thread.
        """
        self._batch.append((action, arguments))
        self._batch_bytes += nbytes
        if soon or self._batch_bytes >= HAND_OVER:
            self._hand_over()

    def finish(self) -> None:
        """Wait until everything is done."""
        self._queue.put((0, self._batch))
        self._queue.put(None)
        self._thread.join()

    def _hand_over(self) -> None:
        batch, nbytes = self._batch, self._batch_bytes
        self._batch, self._batch_bytes = [], 0
        while self._free <= 0:
            self._free += self._done.get()
        self._free -= nbytes
        self._queue.put((nbytes, batch))

    def _drain(self) -> None:
        while (item := self._queue.get()) is not None:
            nbytes = item[0]
            self._carry_out(item[1])
            del item  # and with it the arrays
            if nbytes:
                self._done.put(nbytes)

    def _carry_out(self, batch: list[Action]) -> None:
        try:
            if self.error is None:
                for action, arguments in batch:
                    action(*arguments)
        except Exception as error:  # whoever put the action raises it
            self.error = error
        if self.error is not None:  # an engine that waits for its buffers must get to see the error
            for _, arguments in batch:
                for argument in arguments:
                    if isinstance(argument, Pending):
                        argument.release()
