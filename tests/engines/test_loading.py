"""Loading a base: from a folder or a name, in the dtype asked for, or refused in one sentence."""

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from frugalign import sandbox
from frugalign.base.errors import FrugalignError
from frugalign.engines.adapters import attach_adapter
from frugalign.engines.loading import load_model, prepare_tokenizer, resolve_dtype
from frugalign.engines.transformers import end_token_ids


def llama(hidden: int = 16) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=hidden, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    return LlamaForCausalLM(config).eval()


def tokenizer() -> PreTrainedTokenizerFast:
    words = {f"w{index}": index for index in range(64)}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(words, unk_token="w0")), eos_token="w1")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    llama().save_pretrained(tmp_path / "base")
    tokenizer().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def refusal(*args: Any, **kwargs: Any) -> str:
    """The sentence with which `load_model` refuses: one line, without a traceback in it."""
    with pytest.raises(FrugalignError) as error:
        load_model(*args, **kwargs)
    assert "\n" not in str(error.value) and "Traceback" not in str(error.value)
    return str(error.value)


def test_a_folder_is_loaded_frozen_and_padded_on_the_left(folder: Path) -> None:
    loaded = load_model(str(folder), dtype="float32", device_map="cpu")
    assert not loaded.model.training and not any(p.requires_grad for p in loaded.model.parameters())
    assert loaded.tokenizer.padding_side == "left" and loaded.tokenizer.pad_token_id == 1
    assert torch.equal(loaded.model.lm_head.weight, llama().lm_head.weight)


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_the_dtype_asked_for(folder: Path, name: str) -> None:
    assert load_model(str(folder), dtype=name, device_map="cpu").model.dtype == getattr(torch, name)


def test_the_dtype_where_none_is_asked_for() -> None:
    assert resolve_dtype(None, on_gpu=False) == torch.float32
    assert resolve_dtype(None, on_gpu=True) == resolve_dtype("auto", on_gpu=False) == "auto"


@pytest.mark.parametrize("name", ["int8", "bool", "nonsense", "nn"])
def test_a_bad_dtype(folder: Path, name: str) -> None:
    """An integer type, no type at all, and a module of torch's."""
    assert refusal(str(folder), dtype=name) == (
        f"--dtype {name} is not a floating-point type; use float32, bfloat16, float16 or auto."
    )


def test_a_missing_folder_and_one_without_a_config(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere", tmp_path):
        assert refusal(str(path)) == f"No model in {path}: the folder has no config.json."


def test_damaged_folders(folder: Path) -> None:
    """Truncated weights, no weights, a config that is no JSON, and one of no known kind."""
    weights, config = folder / "model.safetensors", folder / "config.json"
    content = config.read_text()
    weights.write_bytes(weights.read_bytes()[:-100])
    assert str(folder) in refusal(str(folder))
    weights.unlink()
    assert str(folder) in refusal(str(folder))
    config.write_text(content[:50])
    assert str(folder) in refusal(str(folder))
    config.write_text(json.dumps({"model_type": "nonsense"}))
    assert str(folder) in refusal(str(folder))


def test_pickled_weights_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(llama().state_dict(), folder / "pytorch_model.bin")
    assert str(folder) in refusal(str(folder))


def test_a_name_in_a_module(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path, a function that returns one, and the sandbox's own; the name is kept as it was given."""
    module: Any = ModuleType("my_bases")
    module.small, module.made = folder, lambda: str(folder)
    monkeypatch.setitem(sys.modules, "my_bases", module)
    for name in ("my_bases:small", "my_bases:made"):
        loaded = load_model(name, device_map="cpu")
        assert loaded.name == name and loaded.model.config.vocab_size == 64
    assert load_model("frugalign.sandbox:model", device_map="cpu").model.config.vocab_size == 257
    assert Path(sandbox.model).is_dir()
    assert refusal("my_bases:absent") == "The module 'my_bases' has no 'absent' (named by 'my_bases:absent')."
    assert "Cannot import 'no_such_bases'" in refusal("no_such_bases:small")


def test_end_tokens() -> None:
    """Those of the generation config, one or several, before the tokenizer's; none where nobody has one."""
    model = llama()
    for configured, wanted in (([5, 9, 2], (5, 9, 2)), (7, (7,)), (0, (0,)), (None, (1,))):
        model.generation_config.eos_token_id = configured
        assert end_token_ids(model, tokenizer()) == wanted
    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"w0": 0}, unk_token="w0")))
    assert end_token_ids(model, words) == ()


def test_a_folder_under_home(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    assert load_model("~/base", device_map="cpu").model.config.vocab_size == 64


def test_a_pad_token_of_its_own_is_kept() -> None:
    own = tokenizer()
    own.pad_token = "w9"
    prepare_tokenizer(own)
    assert own.pad_token_id == 9 and own.padding_side == "left"


def adapter(folder: Path, hidden: int = 16, targets: list[str] | None = None) -> str:
    """A LoRA for a Llama of width `hidden`, with weights that do something."""
    config = LoraConfig(r=2, target_modules=targets or ["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(llama(hidden), config).save_pretrained(str(folder))
    return str(folder)


def test_an_adapter_belongs_to_the_frozen_base(folder: Path, tmp_path: Path) -> None:
    ids = torch.tensor([[5, 6, 7]])
    plain = load_model(str(folder), device_map="cpu").model(ids).logits
    adapted = load_model(str(folder), device_map="cpu", adapter=adapter(tmp_path / "lora")).model
    assert not torch.allclose(adapted(ids).logits, plain)
    assert not adapted.training and not any(p.requires_grad for p in adapted.parameters())


def test_an_adapter_of_another_width(folder: Path, tmp_path: Path) -> None:
    path = adapter(tmp_path / "lora", hidden=32)
    assert f"Cannot load the adapter {path!r}" in refusal(str(folder), device_map="cpu", adapter=path)


def test_an_adapter_for_modules_that_are_not_there(tmp_path: Path) -> None:
    path = Path(adapter(tmp_path / "lora"))
    config = json.loads((path / "adapter_config.json").read_text())
    (path / "adapter_config.json").write_text(json.dumps(config | {"target_modules": ["c_attn"]}))
    with pytest.raises(FrugalignError, match="Cannot load the adapter"):
        attach_adapter(llama(), str(path))


def test_a_truncated_adapter(folder: Path, tmp_path: Path) -> None:
    path = adapter(tmp_path / "lora")
    weights = tmp_path / "lora" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    assert f"{path}/adapter_model.safetensors is truncated" in refusal(str(folder), device_map="cpu", adapter=path)


def test_no_adapter_there(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "No adapter in" in refusal(str(folder), device_map="cpu", adapter=str(tmp_path / "empty"))


def drop_first(weights: Path) -> str:
    """Rewrite a safetensors file without its first tensor; the tensor's name."""
    tensors = load_file(weights)
    name = sorted(tensors)[0]
    del tensors[name]
    save_file(tensors, weights, {"format": "pt"})
    return name


def test_a_base_with_a_missing_tensor_is_refused(folder: Path) -> None:
    name = drop_first(folder / "model.safetensors")
    message = refusal(str(folder), device_map="cpu")
    assert "incomplete: its files lack" in message and name in message


def test_an_adapter_that_fits_in_part_is_refused(folder: Path, tmp_path: Path) -> None:
    path = adapter(tmp_path / "lora")
    drop_first(tmp_path / "lora" / "adapter_model.safetensors")
    assert f"The adapter {path!r} does not fit" in refusal(str(folder), device_map="cpu", adapter=path)


def test_code_in_a_repository_is_never_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even where a terminal would say yes to transformers' question."""
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\n")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    assert str(folder) in refusal(str(folder), device_map="cpu")
    assert not (folder / "ran").exists()


def test_a_pickled_adapter_is_refused(folder: Path, tmp_path: Path) -> None:
    path = adapter(tmp_path / "lora")
    weights = tmp_path / "lora" / "adapter_model.safetensors"
    torch.save(load_file(weights), tmp_path / "lora" / "adapter_model.bin")
    weights.unlink()
    assert "no adapter_model.safetensors" in refusal(str(folder), device_map="cpu", adapter=path)


def damaged_tokenizer(**more: Any) -> PreTrainedTokenizerFast:
    found = tokenizer()
    for kind, tokens in more.items():
        found.add_tokens(tokens, special_tokens=kind == "special")
    return found


def test_a_tokenizer_with_words_beyond_the_embedding(folder: Path) -> None:
    """An added word, a special token of the template, a pad token. A special token that no text has is allowed."""
    for made, token in (
        (damaged_tokenizer(plain=["new"]), "new"),
        (damaged_tokenizer(special=["<turn>"]), "<turn>"),
        (damaged_tokenizer(special=["<pad>"]), "<pad>"),
    ):
        if token == "<turn>":
            made.chat_template = "{% for m in messages %}<turn>{{ m.content }}{% endfor %}"
        if token == "<pad>":
            made.pad_token = token
        made.save_pretrained(folder)
        message = refusal(str(folder), device_map="cpu")
        assert f"the token {token!r} has number 64, and the embedding has 64 rows" in message
    damaged_tokenizer(special=["<image>"]).save_pretrained(folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    assert load_model(str(folder), device_map="cpu").tokenizer.convert_tokens_to_ids("<image>") == 64


@pytest.mark.parametrize(
    "change",
    [
        *({"vocab_size": 32}, {"hidden_size": 32}, {"hidden_size": 0}, {"num_attention_heads": 0}, {"hidden_size": "16"}),
        *({"num_hidden_layers": -1}, {"num_hidden_layers": 9}, {"num_hidden_layers": 1}, {"vocab_size": None}, {"rope_parameters": {"rope_type": "x"}}),
        *({"hidden_act": "nonsense"}, {"quantization_config": {"quant_method": "nonsense"}}, {"architectures": 3}),
    ],
)  # fmt: skip
def test_a_config_that_does_not_match_the_tensors(folder: Path, change: dict[str, Any]) -> None:
    """It is refused in a sentence, or has no effect."""
    config = json.loads((folder / "config.json").read_text())
    wanted = load_model(str(folder), device_map="cpu").model(torch.tensor([[5, 6]])).logits
    (folder / "config.json").write_text(json.dumps(config | change))
    try:
        found = load_model(str(folder), device_map="cpu")
    except FrugalignError as error:
        assert str(folder) in str(error) and "\n" not in str(error)
    else:
        assert torch.equal(found.model(torch.tensor([[5, 6]])).logits, wanted)


def test_attention_code_that_a_config_names_is_not_fetched(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    for name in ("attn_implementation", "experts_implementation", "_attn_implementation"):
        (folder / "config.json").write_text(json.dumps(config | {name: "evil/kernel"}))
        assert load_model(str(folder), device_map="cpu").model.config._attn_implementation == "sdpa"


def test_an_adapter_in_a_models_place(folder: Path, tmp_path: Path) -> None:
    path = adapter(tmp_path / "lora")
    assert "it is an adapter, so give it as adapter" in refusal(path, device_map="cpu")


@pytest.mark.parametrize(
    ("device", "sentence"),
    [
        ("cuda", "device_map is cuda, which needs that GPU, and torch sees none here."),
        ("cuda:7", "device_map is cuda:7, which needs that GPU, and torch sees none here."),
        ("mps", "device_map is mps, and there is no Apple GPU here."),
        ("gpu", "device_map is 'gpu'; it must be a device or a word such as cpu, cuda, "),
        ("cuda:x", "device_map is 'cuda:x'; it must be a device"),
        ("meta", "device_map is meta, where a model has no weights."),
    ],
)
def test_a_device_that_is_not_here_is_refused_before_anything_is_read(
    device: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(FrugalignError) as raised:
        load_model("./nowhere", device_map=device)
    assert str(raised.value).startswith(sentence)


def test_four_bits_without_the_library_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("frugalign.engines.loading.find_spec", lambda name: None)
    with pytest.raises(
        FrugalignError, match=r"^load_in_4bit needs the package bitsandbytes, which is not installed\.$"
    ):
        load_model(sandbox.model, load_in_4bit=True)
