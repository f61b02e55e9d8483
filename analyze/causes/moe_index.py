from ..cause import Cause, with_inputs


class MoeIndex(Cause):
    """Slots are computed by the wrong expert: the next one, that of another slot, or the first throughout.

    llama.cpp#26310 (a row list sized by tokens), vllm#46408 (-1 wraps to the last expert).
    """

    id = "moe_index"
    fix = "size the list of rows by slots x tokens, and index experts by the router's choice of each slot"
    default = "next"
    choices = ("next", "slots", "first")
    tell = "each slot's output before they are added up"
    needs = ("moe",)
    fires = ("moe_index@expert_gate", "moe_index@1,expert_out=slots", "moe_index@0,expert_up=first")
    quiet = ("moe_norm", "weight_other@up=layer0")

    def applies(self, op):
        return op.kind == "expert_linear"

    def change(self, op, value, model):
        count = model.shape(op.weights[0])[0]

        def chosen(x, ids, *weights):
            wrong = {"next": (ids + 1) % count, "slots": ids[:, ::-1], "first": ids[:, :1] + 0 * ids}
            return (x, wrong[value], *weights)

        return op.wrapped(with_inputs(chosen))
