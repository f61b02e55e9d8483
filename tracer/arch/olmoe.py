"""OLMoE (arXiv:2409.02060): `general.architecture = olmoe`.

Pre-norm RMSNorm, an RMSNorm over Q and K of all heads at once before the rotary embedding (half-split pairs),
no biases.  Every feed-forward block is a mixture of SwiGLU experts, their weights probabilities over all
experts and not renormalised.  Defined in llama.cpp `src/models/olmoe.cpp`, transformers
`models/olmoe/modeling_olmoe.py`.
"""

from ..experts import experts
from ..graph import POSITIONS, TOKENS, Graph
from ..rotation import head_size, rotation


def build(g: Graph) -> None:
    hp = g.model.hparam
    heads = hp("attention.head_count")
    kv_heads = hp("attention.head_count_kv", heads)
    eps = hp("attention.layer_norm_rms_epsilon")
    rope = rotation(g.model, "half-split")

    x = g.op("embd", "embedding", TOKENS, w=("token_embd.weight",))
    for _ in g.layers(hp("block_count")):
        h = g.op("attn_norm", "rms_norm", x, w=("attn_norm.weight",), eps=eps)
        q = g.op("q", "linear", h, w=("attn_q.weight",), heads=heads)
        k = g.op("k", "linear", h, w=("attn_k.weight",), heads=kv_heads)
        v = g.op("v", "linear", h, w=("attn_v.weight",), heads=kv_heads)
        q = g.op("q_norm", "rms_norm", q, w=("attn_q_norm.weight",), eps=eps)
        k = g.op("k_norm", "rms_norm", k, w=("attn_k_norm.weight",), eps=eps)
        q = g.op("q_rope", "rope", q, POSITIONS, **rope)
        k = g.op("k_rope", "rope", k, POSITIONS, **rope)
        a = g.op("attn", "attention", q, k, v, scale=head_size(g.model) ** -0.5)
        a = g.op("attn_out", "linear", a, w=("attn_output.weight",))
        x = g.op("resid_mid", "add", x, a)
        h = g.op("ffn_norm", "rms_norm", x, w=("ffn_norm.weight",), eps=eps)
        h = experts(g, h, out="ffn_out", renormalised=False, activation="silu")
        x = g.op("resid_out", "add", x, h)
    x = g.op("final_norm", "rms_norm", x, w=("output_norm.weight",), eps=eps)
    g.op("logits", "linear", x, w=(g.head,))
