import ml_dtypes
import numpy as np

from ...tracer.format import numpy_dtype
from ..rule import Rule


class Denormal(Rule):
    """Numbers below the smallest normal one: slow on many devices, coarse, and rarely what was meant.

    Integers read as floats look like this (a buffer of the wrong type), and so do products that underflow.
    Probabilities do it by nature: exp of a very low score.  A healthy float32 or bfloat16 trace has none
    elsewhere; in float16 (normal from 6e-5 on) up to a few percent are.
    """

    id = "denormal"
    severity = "warning"
    idle = "statistics do not tell denormal numbers"

    BY_NATURE = ("probs",)
    SHARE, FLOAT16 = 1e-3, 0.5  # of the nonzero values, from which on it is reported

    def see(self, block):
        for name, spec in block.specs.items():
            kind = numpy_dtype(spec.dtype)
            floating = kind.kind == "f" or spec.dtype == "bfloat16"
            if floating and name not in self.BY_NATURE and "." not in name:
                self.judged += 1
                yield from self._look(block, name, float(ml_dtypes.finfo(kind).smallest_normal))

    def _look(self, block, name, smallest):
        tiny = nonzero = 0
        for part in block.parts(name):
            size = np.abs(part)
            present = int(np.count_nonzero(size))
            nonzero += present
            tiny += present - int(np.count_nonzero((size >= smallest) | np.isnan(size)))
        share = tiny / max(nonzero, 1)
        limit = self.FLOAT16 if block.specs[name].dtype == "float16" else self.SHARE
        if share > limit and tiny > 16:
            message = (
                f"{share:.1%} of {name} are denormal (below {smallest:.2g}): wrong type read, or underflow"
            )
            yield self.hit(block, name, np.arange(len(block.rows)), share, f"at most {limit:.1%}", message)
