from dataclasses import replace

import numpy as np

from ..cause import Cause, with_weight


class TiedHead(Cause):
    """The output head is the wrong tensor: the embedding where the model has a head of its own, or none.

    pegainfer#544 (untied checkpoint, embedding reused); an empty head gives constant logits
    (transformers#45079).
    """

    id = "tied_head"
    fix = "use output.weight where the file has it, token_embd.weight where it has not"
    default = "embedding"
    choices = ("embedding", "empty")
    fires = ("tied_head", "tied_head=empty")
    quiet = ("logit_scale", "tile_tail@logits=16")

    def applies(self, op):
        return op.kind == "linear" and op.out.name in ("logits", "raw_logits")

    def change(self, op, value, model):
        if value == "empty":
            return op.wrapped(with_weight(np.zeros_like))
        own = op.weights[0] == "token_embd.weight"
        return op if own else replace(op, weights=("token_embd.weight", *op.weights[1:]))
