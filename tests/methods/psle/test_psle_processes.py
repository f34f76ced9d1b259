"""Two processes on one machine against one with twice the batch: the same responses and rewards, the same run."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.forked import two_processes
from tests.two_layers import two_layers

from frugalign.cli.main import main
from frugalign.methods.psle.responses import read_round
from frugalign.sandbox.world import make_prompts

FLAGS = {
    "model_name_or_path": two_layers(),
    "dataset_name": "prompts.jsonl",
    "principles": "frugalign.sandbox:PRINCIPLES",
    "reward": "frugalign.sandbox:gold",
    "rounds": "2",
    "max_new_tokens": "24",
    "learning_rate": "0.001",
    "max_grad_norm": "1e9",
    "optim": "sgd",
    "dataloader_drop_last": "true",
    "logging_steps": "1",
    "eval_prompts": "1",
    "use_cpu": "true",
}
WORDS = ["psle", *(word for name, value in FLAGS.items() for word in (f"--{name}", value))]


@pytest.mark.slow
@pytest.mark.parametrize("more", ["", "--train proxy --fsdp_size 2"], ids=["lora", "fsdp"])
def test_two_processes_are_one(more: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = make_prompts("train", 19, 0)
    Path("prompts.jsonl").write_text("".join(json.dumps({"prompt": row["prompt"]}) + "\n" for row in rows))
    words = [*WORDS, "--output_dir", "two", "--per_device_train_batch_size", "4"]
    kind = more.split()[:2]
    two_processes(partial(main, words + more.split()), tmp_path)
    assert main([*WORDS, *kind, "--output_dir", "one", "--per_device_train_batch_size", "8"]) == 0
    for number in range(2):
        one, two = (json.loads(Path(f"{run}/round-00{number}/manifest.json").read_text()) for run in ("one", "two"))
        assert one["optimizer_steps"] == two["optimizer_steps"] == 2, "else it was one process with a batch of 4"
        ours, theirs = (read_round(Path(f"{run}/round-00{number}/responses.jsonl")) for run in ("one", "two"))
        assert ours.scored.completions == theirs.scored.completions and ours.scored.rows == theirs.scored.rows
        torch.testing.assert_close(ours.scored.rewards, theirs.scored.rewards, atol=1e-4, rtol=1e-4)
        assert ours.branches == theirs.branches and one["use"] == pytest.approx(two["use"])
    # Plain steps along the gradient: a difference of the gradients is one of the weights.
    weights = "model.safetensors" if kind else "adapter_model.safetensors"
    ours, theirs = (load_file(f"{run}/{weights}") for run in ("one", "two"))
    moved = {name: value for name, value in ours.items() if kind or "lora_B" in name}  # B begins at 0
    largest = max(float(value.abs().max()) for value in moved.values())
    assert largest > 0
    assert max(float((theirs[name] - value).abs().max()) for name, value in moved.items()) < 1e-4 * largest
    # One held-out prompt: the second process has none.
    seen = [json.loads(Path(f"{run}/round-001/evaluation.json").read_text()) for run in ("one", "two")]
    assert seen[0]["reward"] == pytest.approx(seen[1]["reward"], abs=1e-4)
    costs = [json.loads(Path(f"{run}/costs.json").read_text()) for run in ("one", "two")]
    for name in ("generated_tokens", "reward_calls", "optimizer_steps"):
        assert costs[0][name] == costs[1][name]
