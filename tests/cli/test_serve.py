"""`frugalign serve` as a command: mistakes in one sentence, and a server that starts, answers and stops by a signal."""

import json
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from frugalign.cli.main import main

pytest.importorskip("fastapi", reason="the serve extra is not installed")
pytest.importorskip("prometheus_client", reason="the serve extra is not installed")
BASE = ["serve", "--model_name_or_path", "frugalign.sandbox:model", "--port", "0"]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["--proxies", "safe=no/where"], "no/where"),
        (["--proxies", "a=x", "b=x"], "The proxy x is given twice"),
        (["--proxies", "a=x", "a=y"], "Two proxies are called a: give them names, as name=DIR."),
        (["--proxies", "x+y"], "A proxy cannot be called 'x+y' in a model's name"),
        (["--api_key_file", "nowhere.txt"], "Cannot read nowhere.txt"),
        (["--port", "70000"], "port is 70000; it must be between 0 and 65535."),
        (["--host", "no.such.host.invalid"], "Cannot listen on no.such.host.invalid, port 0"),
        (["--max_batch_size", "0"], "max_batch_size is 0; it must be at least 1."),
    ],
)
def test_a_mistake_is_one_sentence(
    given: list[str], sentence: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*BASE, *given]) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1


def test_a_missing_extra_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("frugalign.cli.serve.find_spec", lambda name: None if name == "uvicorn" else object())
    assert main(BASE) == 2
    assert "frugalign serve needs uvicorn: pip install 'frugalign[serve]'." in capsys.readouterr().err


@pytest.mark.slow
def test_it_answers_until_a_signal_and_ends_with_status_0(tmp_path: Path) -> None:
    keys = tmp_path / "keys.txt"
    keys.write_text("sesame\n")
    command = [sys.executable, "-m", "frugalign.cli", *BASE, "--api_key_file", str(keys), "--served_model_name", "base"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None and server.stderr is not None
        line = server.stdout.readline()
        assert line.startswith("Serving base on http://127.0.0.1:"), line
        url = line.split()[3].rstrip(".")
        body = json.dumps({"model": "base", "prompt": "xyzzy", "max_tokens": 3}).encode()
        headers = {"Content-Type": "application/json", "Authorization": "Bearer sesame"}
        with urllib.request.urlopen(urllib.request.Request(f"{url}/v1/completions", body, headers)) as response:
            found = json.load(response)
        assert found["usage"]["completion_tokens"] <= 3
        server.send_signal(signal.SIGTERM)
        said = server.stderr.read()
        assert server.wait(60) == 0, said
    assert "Traceback" not in said and "xyzzy" not in said and "sesame" not in said and "/v1/completions 200" in said
