"""SmolLM 3: `general.architecture = smollm3`.

As Llama (pre-norm RMSNorm, grouped-query attention, SwiGLU; interleaved RoPE pairs, as GGUF permutes Q and K
for them), but every fourth layer has no position embedding at all (NoPE, arXiv:2501.18795).  Head tied.  YaRN
in files made for long contexts.  Defined in llama.cpp `src/models/smollm3.cpp`, transformers
`models/smollm3/modeling_smollm3.py`.
"""

from ..graph import POSITIONS, TOKENS, Graph
from ..rotation import head_size, rotation

NO_ROPE_EVERY = 4


def build(g: Graph) -> None:
    hp = g.model.hparam
    heads = hp("attention.head_count")
    kv_heads = hp("attention.head_count_kv", heads)
    eps = hp("attention.layer_norm_rms_epsilon")
    rope = rotation(g.model, "interleaved")

    x = g.op("embd", "embedding", TOKENS, w=("token_embd.weight",))
    for layer in g.layers(hp("block_count")):
        h = g.op("attn_norm", "rms_norm", x, w=("attn_norm.weight",), eps=eps)
        q = g.op("q", "linear", h, w=("attn_q.weight", "attn_q.bias?"), heads=heads)
        k = g.op("k", "linear", h, w=("attn_k.weight", "attn_k.bias?"), heads=kv_heads)
        v = g.op("v", "linear", h, w=("attn_v.weight", "attn_v.bias?"), heads=kv_heads)
        if (layer + 1) % NO_ROPE_EVERY:
            q = g.op("q_rope", "rope", q, POSITIONS, **rope)
            k = g.op("k_rope", "rope", k, POSITIONS, **rope)
        a = g.op("attn", "attention", q, k, v, scale=head_size(g.model) ** -0.5)
        a = g.op("attn_out", "linear", a, w=("attn_output.weight",))
        x = g.op("resid_mid", "add", x, a)
        h = g.op("ffn_norm", "rms_norm", x, w=("ffn_norm.weight",), eps=eps)
        gate = g.op("gate", "linear", h, w=("ffn_gate.weight",))
        up = g.op("up", "linear", h, w=("ffn_up.weight",))
        h = g.op("act", "glu", gate, up, activation="silu")
        h = g.op("ffn_out", "linear", h, w=("ffn_down.weight",))
        x = g.op("resid_out", "add", x, h)
    x = g.op("final_norm", "rms_norm", x, w=("output_norm.weight",), eps=eps)
    g.op("logits", "linear", x, w=(g.head,))
