"""`frugalign generate` and `chat`: answers, colours, conversations, and mistakes in one sentence."""

import io
import re
from pathlib import Path

import pytest
import torch

from frugalign import sandbox
from frugalign.cli.main import main
from frugalign.engines.fingerprints import fingerprint
from frugalign.engines.loading import load_model
from frugalign.proxy.network import new_proxy

BASE = ["--model_name_or_path", "frugalign.sandbox:model"]
ORDER = "Give me a jar to cure the cough of my aunt."


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A proxy that rejects a good deal."""
    base = load_model(sandbox.model)
    found = new_proxy(base.model, {"max_new_tokens": 32})
    with torch.no_grad():
        for number, parameter in enumerate(found.parameters()):
            parameter.add_(0.5 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
    found.config.base = fingerprint(base.model, base.tokenizer, name="frugalign.sandbox:model").to_dict()
    folder = tmp_path_factory.mktemp("proxy")
    found.save_pretrained(folder)
    return str(folder)


def said(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main([*argv]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def test_an_answer_is_a_function_of_the_seed(capsys: pytest.CaptureFixture[str]) -> None:
    first, again, other = (
        said(capsys, "generate", *BASE, "--prompt", ORDER, "--seed", seed) for seed in ("0", "0", "5")
    )
    assert first.strip() and first == again != other


def test_the_proxy_changes_the_answer_and_strength_0_does_not_follow_it(
    capsys: pytest.CaptureFixture[str], proxy: str
) -> None:
    guided = said(capsys, "generate", *BASE, "--proxy", proxy, "--prompt", ORDER)
    restricted = said(capsys, "generate", *BASE, "--proxy", proxy, "--strength", "0", "--prompt", ORDER)
    assert guided != restricted


def test_rejections_are_shown_and_explained(capsys: pytest.CaptureFixture[str], proxy: str) -> None:
    """The text is the plain answer with rejected proposals between its tokens."""
    plain = said(capsys, "generate", *BASE, "--proxy", proxy, "--prompt", ORDER)
    shown = said(capsys, "generate", *BASE, "--proxy", proxy, "--prompt", ORDER, "--show_rejections")
    text, legend = shown.rsplit("\n(", 1)
    rejected = r"\[-\S+-\](×\d+)? "
    assert re.search(rejected, text), "this proxy rejects something in this answer"
    assert re.sub(rejected, "", text).removesuffix("<eos>").strip() == plain.strip(), (
        "without colour too, the marks tell what was rejected"
    )
    assert "[-so-]: rejected" in legend


def test_greedy_needs_no_seed(capsys: pytest.CaptureFixture[str]) -> None:
    answers = {said(capsys, "generate", *BASE, "--prompt", ORDER, "--no_do_sample", "--seed", seed) for seed in "01"}
    assert len(answers) == 1


def test_the_default_length_gives_way_to_a_short_context(capsys: pytest.CaptureFixture[str]) -> None:
    """256 new tokens exceed the sandbox's context of 192; asking for 500 is the user's own mistake."""
    assert said(capsys, "generate", *BASE, "--prompt", ORDER).strip()
    assert main(["generate", *BASE, "--prompt", ORDER, "--max_new_tokens", "500"]) == 2
    assert "context of 192" in capsys.readouterr().err


def test_a_conversation_goes_on_until_its_lines_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    """Two turns with history; equal questions get fresh noise; /new forgets the history but not the turn."""
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{ORDER}\n{ORDER}\n/new\n{ORDER}\n"))
    lines = said(capsys, "chat", *BASE, "--proxy", proxy).strip().splitlines()
    assert len(lines) == 3 and all(lines)
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{ORDER}\n\nnever read\n"))
    assert said(capsys, "chat", *BASE, "--proxy", proxy).strip().splitlines() == lines[:1]


def test_chat_shows_rejections_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(ORDER + "\n"))
    found = said(capsys, "chat", *BASE, "--proxy", proxy, "--show_rejections", "--system", "Be kind.")
    assert "rejected" in found.splitlines()[0] and len(found.splitlines()) >= 2


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--temperature", "0.5", "--proxy", "PROXY"], "was trained at temperature 1 and cannot be used at 0.5"),
        (["--temperature", "0"], "it must be above 0"),
        (["--proxy", "nowhere/at/all"], "nowhere/at/all"),
        (["--proxy", "PROXY", "--adapter", "PROXY"], "Give only one of proxy and adapter"),
    ],
)
def test_mistakes_are_one_sentence(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, proxy: str, argv: list[str], words: str
) -> None:
    given = [proxy if word == "PROXY" else word for word in argv]
    assert main(["generate", *BASE, "--prompt", ORDER, *given]) == 2
    error = capsys.readouterr().err
    assert words in error and "Traceback" not in error
