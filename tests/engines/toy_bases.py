"""A tiny Llama with its tokenizer, and artefacts of every kind for it."""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from frugalign.engines.adapters import record_adapter
from frugalign.engines.fingerprints import fingerprint
from frugalign.engines.loading import load_model
from frugalign.proxy.network import new_proxy
from frugalign.rewards.representation.network import RepresentationConfig, RepresentationModel

ARTEFACTS = ("proxy", "reward", "adapter")
WEIGHTS = {"proxy": "model.safetensors", "reward": "model.safetensors", "adapter": "adapter_model.safetensors"}
CONFIG = {"proxy": "config.json", "reward": "config.json", "adapter": "adapter_config.json"}


def save_base(folder: Path, seed: int = 0) -> Path:
    """64 words, width 16, two layers."""
    torch.manual_seed(seed)
    sizes = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32}
    LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=2, num_attention_heads=2)).save_pretrained(folder)
    words = Tokenizer(WordLevel({f"w{index}": index for index in range(64)}, unk_token="w0"))
    words.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w1").save_pretrained(folder)
    return folder


def save_artefact(kind: str, base: Path | str, folder: Path) -> Path:
    """A proxy, a representation reward or a recorded LoRA for the model in `base`, with weights that do something."""
    loaded = load_model(str(base), device_map="cpu")
    torch.manual_seed(1)
    if kind == "adapter":
        targets = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
        adapted = get_peft_model(loaded.model, targets)
        adapted.save_pretrained(folder)
        record_adapter(folder, fingerprint(adapted, loaded.tokenizer, without_adapter=True))
        return folder
    network: Any
    if kind == "proxy":
        network = new_proxy(loaded.model, {"hidden": 4, "dim": 4})
    else:
        network = RepresentationModel(RepresentationConfig(width=16, layers=[1, 2], mu=0.3, scale=0.7))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    network.config.base = fingerprint(loaded.model, loaded.tokenizer, name=loaded.name).to_dict()
    network.save_pretrained(folder)
    return folder
