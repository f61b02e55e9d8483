"""gpt-oss (arXiv:2508.10925): `general.architecture = gpt-oss`.

Pre-norm RMSNorm (the one before the feed-forward block is called post_attention_norm), grouped-query
attention with biases on Q, K, V and the output, half-split RoPE pairs, windows in layers 0, 2, 4, …, and for
each head a learned sink: a score without a key that takes part in the softmax.  Every feed-forward block is a
mixture of experts with biases, their weights a softmax over the chosen ones, their activation a clamped
SwiGLU.  YaRN with a ramp whose ends are not rounded to whole pairs (`truncate: false` of the models'
configuration, as transformers and OpenAI's own code have it; llama.cpp rounds them).  Defined in llama.cpp
`src/models/openai-moe.cpp`, transformers `models/gpt_oss/modeling_gpt_oss.py`.
"""

from ..experts import experts
from ..graph import POSITIONS, TOKENS, Graph
from ..rotation import head_size, rotation
from ..windows import windows

ALPHA, LIMIT = 1.702, 7.0  # of the activation; no file states them


def build(g: Graph) -> None:
    hp = g.model.hparam
    heads = hp("attention.head_count")
    kv_heads = hp("attention.head_count_kv", heads)
    eps = hp("attention.layer_norm_rms_epsilon")
    rope = rotation(g.model, "half-split", whole_pairs=False)
    window = windows(g.model, every=2)

    x = g.op("embd", "embedding", TOKENS, w=("token_embd.weight",))
    for layer in g.layers(hp("block_count")):
        h = g.op("attn_norm", "rms_norm", x, w=("attn_norm.weight",), eps=eps)
        q = g.op("q", "linear", h, w=("attn_q.weight", "attn_q.bias?"), heads=heads)
        k = g.op("k", "linear", h, w=("attn_k.weight", "attn_k.bias?"), heads=kv_heads)
        v = g.op("v", "linear", h, w=("attn_v.weight", "attn_v.bias?"), heads=kv_heads)
        q = g.op("q_rope", "rope", q, POSITIONS, **rope)
        k = g.op("k_rope", "rope", k, POSITIONS, **rope)
        a = g.op(
            *("attn", "attention", q, k, v),
            w=("attn_sinks.weight",),
            scale=head_size(g.model) ** -0.5,
            window=window[layer],
        )
        a = g.op("attn_out", "linear", a, w=("attn_output.weight", "attn_output.bias?"))
        x = g.op("resid_mid", "add", x, a)
        h = g.op("ffn_norm", "rms_norm", x, w=("post_attention_norm.weight",), eps=eps)
        h = experts(g, h, out="ffn_out", renormalised=True, kind="clamped_glu", alpha=ALPHA, limit=LIMIT)
        x = g.op("resid_out", "add", x, h)
    x = g.op("final_norm", "rms_norm", x, w=("output_norm.weight",), eps=eps)
    g.op("logits", "linear", x, w=(g.head,))
