from ..cause import Cause


class SharedGate(Cause):
    """The shared expert counts whole, without its gate, or not at all.

    torchtitan#36 (the sigmoid gate loaded and never used), JAXformer#21 (only the routed part returned).
    """

    id = "shared_gate"
    fix = "add sigmoid(h · gate) times the shared expert's output to that of the chosen ones"
    default = "ungated"
    choices = ("ungated", "dropped")
    tell = "the routed and the shared part before they are added"
    needs = ("moe",)
    fires = ("shared_gate", "shared_gate@1=dropped")
    quiet = ("moe_norm", "resid_mult@1")

    def applies(self, op):
        return op.kind == "gated_add"

    def change(self, op, value, model):
        share = 1 if value == "ungated" else 0
        return op.wrapped(lambda compute: lambda x, y, *rest, **params: x + share * y)
