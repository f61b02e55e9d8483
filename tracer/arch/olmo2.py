"""OLMo 2 (arXiv:2501.00656) and OLMo 3: `general.architecture = olmo2`.

No norm before the blocks: each reads the residual stream as it is, and an RMSNorm follows it.  RMSNorm over Q
and K of all heads at once, before the rotary embedding (half-split pairs); no biases; SwiGLU.  OLMo 3 attends
within a window in three of four layers, and scales the rotary embedding (YaRN) in the fourth only.  Defined
in llama.cpp `src/models/olmo2.cpp`, transformers `models/olmo2/modeling_olmo2.py` and
`models/olmo3/modeling_olmo3.py`.
"""

from ..graph import POSITIONS, TOKENS, Graph
from ..rotation import head_size, rotation
from ..windows import windows


def build(g: Graph) -> None:
    hp = g.model.hparam
    heads = hp("attention.head_count")
    kv_heads = hp("attention.head_count_kv", heads)
    eps = hp("attention.layer_norm_rms_epsilon")
    everywhere = rotation(g.model, "half-split")
    local = rotation(g.model, "half-split", scaled=False)
    window = windows(g.model, every=4)

    x = g.op("embd", "embedding", TOKENS, w=("token_embd.weight",))
    for layer in g.layers(hp("block_count")):
        rope = local if window[layer] else everywhere
        q = g.op("q", "linear", x, w=("attn_q.weight",), heads=heads)
        k = g.op("k", "linear", x, w=("attn_k.weight",), heads=kv_heads)
        v = g.op("v", "linear", x, w=("attn_v.weight",), heads=kv_heads)
        q = g.op("q_norm", "rms_norm", q, w=("attn_q_norm.weight",), eps=eps)
        k = g.op("k_norm", "rms_norm", k, w=("attn_k_norm.weight",), eps=eps)
        q = g.op("q_rope", "rope", q, POSITIONS, **rope)
        k = g.op("k_rope", "rope", k, POSITIONS, **rope)
        a = g.op("attn", "attention", q, k, v, scale=head_size(g.model) ** -0.5, window=window[layer])
        a = g.op("attn_out", "linear", a, w=("attn_output.weight",))
        a = g.op("attn_post_norm", "rms_norm", a, w=("post_attention_norm.weight",), eps=eps)
        x = g.op("resid_mid", "add", x, a)
        gate = g.op("gate", "linear", x, w=("ffn_gate.weight",))
        up = g.op("up", "linear", x, w=("ffn_up.weight",))
        h = g.op("act", "glu", gate, up, activation="silu")
        h = g.op("ffn_out", "linear", h, w=("ffn_down.weight",))
        h = g.op("ffn_post_norm", "rms_norm", h, w=("post_ffw_norm.weight",), eps=eps)
        x = g.op("resid_out", "add", x, h)
    x = g.op("final_norm", "rms_norm", x, w=("output_norm.weight",), eps=eps)
    g.op("logits", "linear", x, w=(g.head,))
