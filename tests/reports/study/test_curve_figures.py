"""How many training prompts a step is, for the axis of a test curve."""

from pathlib import Path

from frugalign.reports.study.curve_figures import _prompts_per_step
from frugalign.runs.layout import CONFIG_FILE


def test_prompts_that_a_proxy_has_seen(tmp_path: Path) -> None:
    """A rollout of 32 completions, four to a prompt, is 8 prompts; two passes over two minibatches are 4 steps: 2 prompts each."""
    config = "per_device_train_batch_size: 32\nnum_generations: 4\nnum_iterations: 2\nnum_mini_batches: 2\n"
    (tmp_path / CONFIG_FILE).write_text(config)
    assert _prompts_per_step(tmp_path) == 2.0
