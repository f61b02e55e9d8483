import numpy as np

from ...tracer.names import execution_order
from ..partial import is_partial, printed_nans, stated_sum
from ..rule import Hit, Rule


class PrintedNan(Rule):
    """A log shows NaN, or a sum that is no number, told once, at the first tensor that has one.

    Of a tensor that is read off a log nothing else can be judged: most of its values were not printed.
    """

    id = "printed_nan"
    severity = "error"
    idle = "nothing was read off a log"

    def conclude(self):
        trace, found = self.context.trace, []
        for key in sorted(trace.tensors, key=execution_order):
            said = trace.tensors[key].conventions
            if is_partial(trace.tensors[key]):
                self.judged += 1
                found += [(step.index, key) for step in trace.flushed if _is_bad(said, step.index)]
        found.sort(key=lambda entry: (entry[0], execution_order(entry[1])))
        if found:
            step, key = found[0]
            count = printed_nans(trace.tensors[key].conventions, step)
            shown = f"shows NaN at {count} places" if count else "states a sum that is no number"
            more = f", and so do {len(found) - 1} later ones" if len(found) > 1 else ""
            message = f"the log {shown} of {key.name}{more}"
            yield Hit(key.name, count, "finite numbers", message, key.layer, sorted({at for at, _ in found}))


def _is_bad(said, step):
    """Whether NaN was printed, or the sum is no number."""
    total = stated_sum(said, "sum", step)
    return printed_nans(said, step) > 0 or (total is not None and not np.isfinite(total))
