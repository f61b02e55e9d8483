"""GPT-2 (Radford et al.  2019): `general.architecture = gpt2`.

Learned positions added to the embedding, none in attention; pre-norm layer norms with biases; Q, K and V one
product with a bias; biases everywhere else, too; GELU without a gate; head tied.  Defined in llama.cpp
`src/models/gpt2.cpp`, transformers `models/gpt2/modeling_gpt2.py`.
"""

from ..graph import POSITIONS, TOKENS, Graph


def build(g: Graph) -> None:
    hp = g.model.hparam
    heads, dim = hp("attention.head_count"), hp("embedding_length")
    eps = hp("attention.layer_norm_epsilon")
    q_rows, k_rows, v_rows = (f"[{part * dim}:{(part + 1) * dim}]" for part in range(3))

    tokens = g.op("tok_embd", "embedding", TOKENS, w=("token_embd.weight",))
    positions = g.op("pos_embd", "embedding", POSITIONS, w=("position_embd.weight",))
    x = g.op("embd", "add", tokens, positions)
    for _ in g.layers(hp("block_count")):
        h = g.op("attn_norm", "layer_norm", x, w=("attn_norm.weight", "attn_norm.bias"), eps=eps)
        q = g.op("q", "linear", h, w=("attn_qkv.weight" + q_rows, "attn_qkv.bias" + q_rows), heads=heads)
        k = g.op("k", "linear", h, w=("attn_qkv.weight" + k_rows, "attn_qkv.bias" + k_rows), heads=heads)
        v = g.op("v", "linear", h, w=("attn_qkv.weight" + v_rows, "attn_qkv.bias" + v_rows), heads=heads)
        a = g.op("attn", "attention", q, k, v, scale=(dim // heads) ** -0.5)
        a = g.op("attn_out", "linear", a, w=("attn_output.weight", "attn_output.bias"))
        x = g.op("resid_mid", "add", x, a)
        h = g.op("ffn_norm", "layer_norm", x, w=("ffn_norm.weight", "ffn_norm.bias"), eps=eps)
        up = g.op("up", "linear", h, w=("ffn_up.weight", "ffn_up.bias"))
        h = g.op("act", "gelu", up)
        h = g.op("ffn_out", "linear", h, w=("ffn_down.weight", "ffn_down.bias"))
        x = g.op("resid_out", "add", x, h)
    x = g.op("final_norm", "layer_norm", x, w=("output_norm.weight", "output_norm.bias"), eps=eps)
    g.op("logits", "linear", x, w=(g.head,))
