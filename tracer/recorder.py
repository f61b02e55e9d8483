"""Recording from any Python code: arrays in, a trace out.

    with Recorder("a.h5", engine="mine", tokens=prompt_ids, heads=9, kv_heads=3) as rec:
        ...
        rec("q", x, layer=0)        # NumPy, PyTorch, CuPy, JAX: whatever has DLPack or __array__
        rec.step(tokens=[next_id])  # before each further forward pass

What is recorded goes to `a.h5.ttr` at once and becomes `a.h5` at the end; where the process dies before that,
`trace import a.h5.ttr -o a.h5` does it.
"""

import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from .arrays import to_numpy
from .assemble import Assembled, assemble
from .axes import Heads, arrange
from .errors import UserError
from .importers.ttr import dump_of
from .names import GLOBAL, NAMES, Key
from .stream import StreamWriter, read_stream
from .translate import own_key


class Recorder:
    """Records the tensors of one run of one engine.  May be called from several threads.

    `tokens` are the ids of the first forward pass, `start` the position of its first token; `heads` and
    `kv_heads` let arrays with heads and dimensions in one axis be told apart; `tile` is the number of keys
    of a tile, where m_tiles and l_tiles are recorded.  `model` is a GGUF file or just a name.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        engine: str = "python",
        engine_version: str = "",
        model: Path | str = "",
        prompt: str = "",
        tokens: Sequence[int] = (),
        start: int | None = None,
        heads: int | None = None,
        kv_heads: int | None = None,
        tile: int | None = None,
        compute_dtype: str = "float32",
        device: str = "cpu",
        settings: Mapping[str, Any] | None = None,
    ):
        self.path = Path(path)
        self.spool = self.path.with_name(f"{self.path.name}.ttr")
        facts = {
            "engine": engine,
            "engine_version": engine_version,
            "prompt": prompt,
            "compute_dtype": compute_dtype,
            "device": device,
            "heads": heads,
            "kv_heads": kv_heads,
            "tile": tile,
            "settings": json.dumps(dict(settings or {})),
            **_model_facts(model),
        }
        self._heads = Heads(heads, kv_heads)
        self._stream = StreamWriter(self.spool, {k: v for k, v in facts.items() if v not in (None, "")})
        self._lock = threading.Lock()
        self._step = -1
        self._seen: set[Key] = set()
        self._tokens: int | None = None
        self._begin(tokens, start)

    def step(self, tokens: Sequence[int] = (), start: int | None = None) -> None:
        """Begin the next forward pass, over `tokens`; without `start` they follow the last ones."""
        with self._lock:
            if not self._seen and self._tokens is None:  # nothing was said of the first step until now
                self._step -= 1
            self._begin(tokens, start)

    def __call__(
        self,
        name: str,
        array: Any,
        layer: int | None = None,
        *,
        axes: Sequence[str] = (),
        source: str = "",
    ) -> None:
        """Record `array` as the tensor `name`, now: it may be changed as soon as this returns.

        `axes` name the array's axes, slowest first, where they are not in the order of the vocabulary
        (`tracer/names.py`) or the name is your own; a batch of 1 in front is left out.  UserError where the
        array does not fit.
        """
        key = _key(name, layer)
        values = to_numpy(array, str(key))
        with self._lock:
            if key in self._seen:
                raise UserError(f"{key} comes twice in one forward pass: call step() before the next one")
            arrange(key, values.shape, axes, self._heads, self._tokens)
            self._stream.tensor(self._step, key.name, values, layer=layer, axes=axes, source=source)
            self._seen.add(key)

    def close(self) -> Assembled:
        """Write the trace and delete the spool; where that fails the spool stays."""
        self._stream.close()
        return self._assemble()

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
            return
        self._stream.abandon()
        try:
            self._assemble()
        except UserError as trouble:  # the first error is the one to show
            error.add_note(f"what was recorded until then is in {self.spool}: {trouble}")

    def _begin(self, tokens: Sequence[int], start: int | None) -> None:
        ids = to_numpy(tokens, "tokens").reshape(-1).tolist() if len(tokens) else []
        if not all(isinstance(token, int) for token in ids):
            raise UserError(f"tokens are ids, whole numbers: {ids[:4]}")
        self._step += 1
        self._stream.step(self._step, ids, start)
        self._seen, self._tokens = set(), len(ids) or None

    def _assemble(self) -> Assembled:
        try:
            result = assemble(dump_of(read_stream(self.spool)), self.path)
        except UserError as error:
            raise UserError(f"{error} (what was recorded is in {self.spool})") from error
        self.spool.unlink()
        return result


def _key(name: str, layer: int | None) -> Key:
    if name in NAMES and (layer is None) != (name in GLOBAL):
        belongs = "belongs to no layer" if name in GLOBAL else "belongs to a layer: state which (layer=0)"
        raise UserError(f"{name} {belongs}")
    key = own_key(layer, name)
    if key != (layer, name):
        raise UserError(f"a tensor cannot be called {name!r} in layer {layer}: {key.name!r} can")
    return key


def _model_facts(model: Path | str) -> dict[str, str]:
    """What a GGUF says of itself; a mere name stays one."""
    path = Path(model)
    if path.suffix != ".gguf" or not path.is_file():
        return {"model_name": str(model)} if str(model) else {}
    from .gguf import Model
    from .importer import model_facts

    facts = model_facts(Model(path))
    return {name: json.dumps(value) if isinstance(value, dict) else value for name, value in facts.items()}
