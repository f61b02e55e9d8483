from ..cause import Cause, with_weight


class WeightTransposed(Cause):
    """A weight is used without its transposition: x·W for x·Wᵀ, or [out, in] read as [in, out].

    AutoGPTQ#139: a Conv1D weight loaded into a Linear. Where the matrix is not square its values are read in
    the wrong shape.
    """

    id = "weight_transposed"
    fix = "GGUF and PyTorch store [out, in]: multiply by the transposed matrix, or load it transposed"
    fires = ("weight_transposed@q", "weight_transposed@1,up")
    quiet = ("weight_heads@q=reversed", "weight_other@q=layer+1")

    def applies(self, op):
        return op.kind == "linear"

    def change(self, op, value, model):
        rows, columns = model.shape(op.weights[0])
        if rows == columns:
            return op.wrapped(with_weight(lambda weight: weight.T))
        return op.wrapped(with_weight(lambda weight: weight.reshape(columns, rows).T))
