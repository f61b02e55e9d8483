import numpy as np

from ...tracer.names import Key
from ..rule import Rule


class ScoresQk(Rule):
    """The scores are not q_rope · k_rope times the softmax scale.

    Fitted from the trace alone: c = <s, q·k> / <q·k, q·k> over the visible keys.  A clean fit with another c
    than 1/sqrt(head_dim) (or the model's own attention.scale) is a wrong scale; a fit that leaves more than
    rounding means wrong products: another KV head, a wrong cache slot, a cap or bias that nobody declared.
    """

    id = "scores_qk"
    severity = "error"
    needs = ("scores", "q_rope", "k_rope")
    idle = "not every key of a recorded row is recorded"

    QUERIES = 64  # rows of a block that are recomputed
    RESIDUAL = 0.02  # of |s|: 8-bit caches and float16 products stay below
    SCALE = 0.02  # relative: a clean fit is far better
    UNDECLARED = 2.0  # models may have a scale of their own, but none known is twice or half the usual one

    def unable(self):
        if (self.context.hparam("attention.max_alibi_bias") or 0) > 0:
            return "the model adds position biases (ALiBi) to the scores"
        return super().unable()

    def see(self, block):
        if not all(block.has(name) for name in ("scores", "q_rope", "k_rope")):
            return
        keys, q = self._keys(block), block.raw("q_rope")
        if keys is None or not len(keys) or q.shape[1] % keys.shape[1] or q.shape[2] != keys.shape[2]:
            return
        chosen = np.unique(np.linspace(0, len(block.rows) - 1, self.QUERIES).astype(int))
        fits = [_products(*pair) for pair in self._heads(block, chosen, q, keys)]
        power, cross, squares = np.array(fits).T
        if not (power.sum() > 0 and squares.sum() > 0):
            return
        self.judged += 1
        yield from self._judge(block, chosen, power, cross, squares, q.shape[2])

    def _keys(self, block):
        """k_rope of all tokens so far [key, kv_head, dim]; None where some are not recorded."""
        last = block.steps[-1]
        if np.count_nonzero(self.context.trace.recorded < last.kv_len) != last.kv_len:
            return None
        return self.context.trace.rows_until(Key(block.layer, "k_rope"), last.index)

    def _heads(self, block, chosen, q, keys):
        """Scores and q·k of the chosen rows, head by head, where both are finite."""
        scores, group = block.raw("scores"), q.shape[1] // keys.shape[1]
        cap = self.context.hparam("attn_logit_softcapping") or block.specs["scores"].conventions.get(
            "softcap"
        )
        for head in range(q.shape[1]):
            s = scores[head][chosen].astype(np.float64)
            if cap:
                s = cap * np.arctanh(np.clip(s / cap, -1, 1))
            products = q[chosen, head].astype(np.float64) @ keys[:, head // group].astype(np.float64).T
            usable = np.isfinite(s) & np.isfinite(products) & (s > -1e4)
            yield s[usable], products[usable]

    def _judge(self, block, rows, power, cross, squares, dim):
        fitted = cross.sum() / power.sum()
        left = np.sqrt(
            np.maximum(squares - cross**2 / np.maximum(power, 1e-300), 0) / np.maximum(squares, 1e-300)
        )
        tolerance = self.RESIDUAL + 10 * block.eps("scores", "q_rope", "k_rope")
        heads = np.flatnonzero(left > tolerance)
        if len(heads):
            message = (
                f"scores are not q·k: the best scale leaves {left.max():.0%} of them unexplained "
                f"in {len(heads)} of {len(left)} heads (wrong KV head, cache slot, bias?)"
            )
            detail = {"heads": heads.tolist(), "fitted_scale": fitted}
            expected = f"at most {tolerance:.0%} left"
            yield self.hit(block, "scores", rows, left.max(), expected, message, detail=detail)
            return
        declared = self._declared(block)
        right = declared or dim**-0.5
        ratio = fitted / right
        if abs(ratio - 1) > self.SCALE + tolerance / 10:
            sure = declared is not None or not 1 / self.UNDECLARED < ratio < self.UNDECLARED
            name = "the model's scale" if declared else f"1/sqrt({dim})"
            message = f"scores are q·k times {fitted:.4g}, {ratio:.3g} times {name} = {right:.4g}"
            severity = "error" if sure else "info"
            weight = abs(float(np.log(abs(ratio) + 1e-300)))
            yield self.hit(
                block, "scores", rows, fitted, f"{right:.4g}", message, severity=severity, weight=weight
            )

    def _declared(self, block):
        """The scale that the model's file or architecture gives; the engine's own word does not count."""
        graph = self.context.graph
        op = graph.producer(Key(block.layer, "scores")) if graph else None
        return op.params["scale"] if op else self.context.hparam("attention.scale")


def _products(s, products):
    """<q·k, q·k>, <s, q·k> and <s, s>; by einsum, as BLAS would start threads for so little."""
    pairs = ((products, products), (s, products), (s, s))
    return [np.einsum("i,i->", one, other) for one, other in pairs]
