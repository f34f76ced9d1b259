"""Local names never reach the network: no verb opens a socket for them, and a misspelt path is refused at once."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest
from tests.engines.toy_bases import save_artefact, save_base

from frugalign.base.errors import FrugalignError
from frugalign.base.specs import local_path
from frugalign.cli.main import main
from frugalign.data.read_files import read_splits
from frugalign.engines.adapters import attach_adapter
from frugalign.engines.loading import check_model, load_model
from frugalign.proxy.network import load_proxy
from frugalign.rewards import load_reward

HUB = ["gpt2", "openai-community/gpt2", "HuggingFaceTB/SmolLM2-135M-Instruct", "a/b.c_d-e"]
PATHS = [
    *("./model", "../model", "/no/model", "~/model", ".", "runs/", "a/b/c", "a\\b", "C:\\models\\x", "a b/c", "x:y/z"),
    *("model.safetensors", "proxy/config.json", "-model", "a//b", "no\x00thing", "x" * 5000 + "/y/z", ""),
]


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any use of a socket fails the test, although the hub is not said to be offline."""
    import huggingface_hub.constants

    def refuse(*_: Any, **__: Any) -> None:
        pytest.fail("a socket was opened")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("getaddrinfo", "create_connection", "gethostbyname"):
        monkeypatch.setattr(socket, name, refuse)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", HUB)
def test_a_hub_id(name: str, here: Path) -> None:
    assert local_path(name) is None
    (here / name).mkdir(parents=True)
    assert local_path(name) == Path(name), "a folder of that name is that folder"


@pytest.mark.parametrize("name", PATHS)
def test_a_path(name: str, here: Path) -> None:
    assert local_path(name) is not None


def test_a_name_in_a_folder_that_exists_is_a_path(here: Path) -> None:
    assert local_path("runs/misspelt") is None
    (here / "runs").mkdir()
    assert local_path("runs/misspelt") == Path("runs/misspelt")


@pytest.mark.parametrize("name", [*PATHS, "runs/misspelt"])
def test_a_misspelt_path_is_refused_without_the_network(name: str, here: Path, no_network: None) -> None:
    (here / "runs").mkdir()
    loads = (load_model, check_model, load_proxy, load_reward, read_splits, lambda path: attach_adapter(None, path))  # type: ignore[arg-type]
    for load in loads:
        with pytest.raises(FrugalignError) as error:
            load(name)
        assert "\n" not in str(error.value) and "connect" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("chat-3n", "chat-3m"),  # a character replaced
        ("chat-3", "chat-3m"),  # left out
        ("chatt-3m", "chat-3m"),  # put in
        ("caht-3m", "chat-3m"),  # two exchanged
        ("Chat-3m", "chat-3m"),
        ("rans/proxy", "runs/proxy"),
        ("runs/proxi", "runs/proxy"),
        ("./chat-3n", "./chat-3m"),
        ("prompts.jsnl", "prompts.jsonl"),
        ("promts.jsonl", "prompts.jsonl"),
    ],
)
def test_a_typo_in_a_local_name_is_said_without_the_network(name: str, near: str, here: Path, no_network: None) -> None:
    (here / "chat-3m").mkdir()
    (here / "runs" / "proxy").mkdir(parents=True)
    (here / "prompts.jsonl").touch()
    for load in (
        load_model,
        check_model,
        load_proxy,
        load_reward,
        read_splits,
        lambda path: attach_adapter(None, path),
    ):  # type: ignore[arg-type]
        with pytest.raises(FrugalignError, match=f"did you mean {near}"):
            load(name)


@pytest.mark.parametrize("name", ["gpt2", "distilgpt2", "imdb", "chat-4b", "other/proxy", "abc"])
def test_a_name_that_only_resembles_a_folder_is_a_hub_id(name: str, here: Path) -> None:
    for folder in ("gpt2-tuned", "distilgpt2_1", "imdb-50", "chat-3m", "runs/proxy", "abd"):
        (here / folder).mkdir(parents=True)
    (here / "gpt3.jsonl").touch()
    assert local_path(name) is None


@pytest.mark.slow
def test_no_verb_opens_a_socket_for_local_names(
    here: Path, no_network: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every verb that loads something, on local paths alone."""
    save_base(here / "base")
    for kind in ("proxy", "reward", "adapter"):
        save_artefact(kind, here / "base", here / kind)
    rows = [{"prompt": f"w{number} w6", "chosen": "w7 w8", "rejected": "w9"} for number in range(5, 60)]
    for name, kept in (("prompts", ["prompt"]), ("pairs", ["prompt", "chosen", "rejected"])):
        lines = [json.dumps({key: row[key] for key in kept}) for row in rows]
        (here / f"{name}.jsonl").write_text("\n".join(lines))
    Path("my.py").write_text("def short(completions, **_):\n    return [-float(len(each)) for each in completions]\n")
    Path("rules.txt").write_text("w5")
    one, run = ["--max_steps", "1"], ["--report_to", "none", "--per_device_train_batch_size", "2"]
    prompts, pairs = ["--dataset_name", "prompts.jsonl"], ["--dataset_name", "pairs.jsonl"]
    short = ["--max_new_tokens", "3"]
    verbs = [
        ["generate", "--prompt", "w5", *short],
        ["generate", "--prompt", "w5", "--proxy", "proxy", *short],
        ["generate", "--prompt", "w5", "--adapter", "adapter", *short],
        ["generate", "--prompt", "w5", "--best_of_n", "2", "--selection_reward", "reward", *short],
        ["evaluate", *prompts, "--reward", "reward", "--proxy", "proxy", *short, "--output_dir", "seen"],
        ["proxy", *prompts, "--reward", "my.py:short", "--output_dir", "p", *one, *run[:2], *short, "--num_generations", "2", "--per_device_train_batch_size", "4"],
        ["reward", *pairs, "--output_dir", "r"],
        ["rerank", *pairs, "--reward", "reward", "--output_dir", "k", *one, *run],
        ["psle", *prompts, "--reward", "my.py:short", "--principles", "rules.txt", "--rounds", "1", "--output_dir", "s", *short],
    ]  # fmt: skip
    for argv in verbs:
        status = main([*argv, "--model_name_or_path", "base", "--use_cpu"])
        assert status == 0, (argv, capsys.readouterr())
    for argv in (["report", "seen"], ["validate", "prompts.jsonl"]):
        assert main(argv) == 0, (argv, capsys.readouterr())
