"""Not a test: a tiny Llama written as a GGUF file, as llama.cpp's own converter does it. Needs the package gguf."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.convert_slow_tokenizer import bytes_to_unicode

TEMPLATE = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
HEADS = 4
_SPECIAL = ["<unk>", "<s>", "</s>"]
_MERGES = ["h e", "l l", "he ll", "hell o", "t h"]
_OF_LAYER = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
_OTHERS = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def tokens() -> list[str]:
    return [*_SPECIAL, *bytes_to_unicode().values(), *(merge.replace(" ", "") for merge in _MERGES)]


def build(seed: int = 0) -> Any:
    """A Llama of 64 dimensions and two layers with its own head, whose weights bfloat16 can hold."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokens()),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config).eval()
    for value in model.parameters():
        value.data.copy_(value.data.bfloat16())
    return model


def write(model: Any, path: Path, form: str = "F32") -> None:
    """Write a model of `build`. `form`: of its matrices, such as Q8_0."""
    import gguf

    config, kinds = model.config, gguf.GGMLQuantizationType
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens())
    writer.add_token_types([3] * len(_SPECIAL) + [1] * (len(tokens()) - len(_SPECIAL)))
    writer.add_token_merges(_MERGES)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)
    for name, value in model.state_dict().items():
        data = _as_stored(name, value, config).numpy()
        kind = getattr(kinds, form if value.dim() == 2 else "F32")
        writer.add_tensor(_name(name), gguf.quantize(data, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _name(name: str) -> str:
    path = name.removesuffix(".weight")
    if path in _OTHERS:
        return f"{_OTHERS[path]}.weight"
    layer, _, part = path.removeprefix("model.layers.").partition(".")
    return f"blk.{layer}.{_OF_LAYER[part]}.weight"


def _as_stored(name: str, value: Tensor, config: Any) -> Tensor:
    """llama.cpp rotates neighbouring dimensions of a head, where transformers rotates its halves."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for part, n in heads.items():
        if part in name:
            halves = value.reshape(n, 2, len(value) // n // 2, -1)
            return halves.transpose(1, 2).reshape(value.shape).contiguous()
    return value.contiguous()
