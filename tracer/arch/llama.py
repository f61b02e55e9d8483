"""Llama (arXiv:2302.13971, Llama 2 and 3), Mistral, Mixtral, SmolLM: `general.architecture = llama`.

Pre-norm RMSNorm, grouped-query attention, rotary embedding on interleaved pairs (GGUF permutes the Q and K
weights for it) with Llama 3's frequency factors where the file has `rope_freqs.weight`, SwiGLU, no biases in
the released models (used where a file has them), output head tied to the embedding when `output.weight` is
absent.  With expert tensors (Mixtral, arXiv:2401.04088) the feed-forward block is a mixture of experts whose
weights are renormalised.  Where the file states a window, all layers have it, as Mistral 7B v0.1's paper
(arXiv:2310.06825) and transformers have; llama.cpp's converter does not write that key for `llama`, and
llama.cpp does not read it.  Defined in llama.cpp `src/models/llama.cpp`, transformers
`models/llama/modeling_llama.py`, `models/mistral/modeling_mistral.py` and
`models/mixtral/modeling_mixtral.py`.
"""

from ..experts import experts
from ..graph import POSITIONS, TOKENS, Graph, Key
from ..rotation import FACTORS, head_size, rotation
from ..windows import windows


def build(g: Graph) -> None:
    hp = g.model.hparam
    heads = hp("attention.head_count")
    kv_heads = hp("attention.head_count_kv", heads)
    eps = hp("attention.layer_norm_rms_epsilon")
    rope = rotation(g.model, "interleaved")
    scale = hp("attention.scale", 0.0) or head_size(g.model) ** -0.5
    window = windows(g.model, every=0)

    x = g.op("embd", "embedding", TOKENS, w=("token_embd.weight",))
    for layer in g.layers(hp("block_count")):
        h = g.op("attn_norm", "rms_norm", x, w=("attn_norm.weight",), eps=eps)
        q = g.op("q", "linear", h, w=("attn_q.weight", "attn_q.bias?"), heads=heads)
        k = g.op("k", "linear", h, w=("attn_k.weight", "attn_k.bias?"), heads=kv_heads)
        v = g.op("v", "linear", h, w=("attn_v.weight", "attn_v.bias?"), heads=kv_heads)
        q = g.op("q_rope", "rope", q, POSITIONS, w=FACTORS, **rope)
        k = g.op("k_rope", "rope", k, POSITIONS, w=FACTORS, **rope)
        a = g.op("attn", "attention", q, k, v, scale=scale, window=window[layer])
        a = g.op("attn_out", "linear", a, w=("attn_output.weight", "attn_output.bias?"))
        x = g.op("resid_mid", "add", x, a)
        h = g.op("ffn_norm", "rms_norm", x, w=("ffn_norm.weight",), eps=eps)
        if "blk.0.ffn_gate_inp.weight" in g.model:
            h = experts(g, h, out="ffn_out", renormalised=True, activation="silu")
        else:
            h = _dense(g, h)
        x = g.op("resid_out", "add", x, h)
    x = g.op("final_norm", "rms_norm", x, w=("output_norm.weight",), eps=eps)
    g.op("logits", "linear", x, w=(g.head,))


def _dense(g: Graph, h: Key) -> Key:
    gate = g.op("gate", "linear", h, w=("ffn_gate.weight", "ffn_gate.bias?"))
    up = g.op("up", "linear", h, w=("ffn_up.weight", "ffn_up.bias?"))
    h = g.op("act", "glu", gate, up, activation="silu")
    return g.op("ffn_out", "linear", h, w=("ffn_down.weight", "ffn_down.bias?"))
