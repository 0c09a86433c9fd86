"""A tiny Llama as a GGUF file, written by the format's own library; the order of rows is ours to get right."""

from pathlib import Path

import torch
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import dequantize, quantize
from transformers import LlamaForCausalLM

Q8 = GGMLQuantizationType.Q8_0
HEADS = 2
NAMES = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def halves_interleaved(weight: torch.Tensor) -> torch.Tensor:
    """Reorders the rows of queries or keys as the format has them: rotary pairs beside each other, head by head."""
    width = weight.shape[0] // HEADS
    order = [
        head * width + half * width // 2 + i for head in range(HEADS) for i in range(width // 2) for half in (0, 1)
    ]
    return weight[order]


def write_gguf(source: Path, file: Path, chat_template: str | None = None) -> dict[str, torch.Tensor]:
    """Writes a tiny Llama in 8 bits, norms in 32; returns the weights that the file then stands for."""
    model = LlamaForCausalLM.from_pretrained(source)
    config = model.config
    writer = GGUFWriter(file, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_dimension_count(config.hidden_size // HEADS)
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_eos_token_id(2)
    if chat_template is not None:
        writer.add_chat_template(chat_template)
    written = {}
    for name, weight in model.state_dict().items():
        whole = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
        layer, _, part = name.removeprefix("model.layers.").partition(".")
        short = whole.get(name) or ("output.weight" if name == "lm_head.weight" else None)
        short = short or f"blk.{layer}.{NAMES[part.removesuffix('.weight')]}.weight"
        turned = halves_interleaved(weight) if "attn_q" in short or "attn_k" in short else weight
        if weight.ndim == 1:
            writer.add_tensor(short, turned.numpy())
            written[name] = weight
        else:
            writer.add_tensor(short, quantize(turned.numpy(), Q8), raw_dtype=Q8)
            # Quantisation goes by rows, so that it is the same before and after the reordering.
            written[name] = torch.from_numpy(dequantize(quantize(weight.numpy(), Q8), Q8))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return written
