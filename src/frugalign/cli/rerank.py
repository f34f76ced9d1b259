"""`frugalign rerank`: align a model on stored preferences with confidence that follows it."""

from __future__ import annotations

from frugalign.cli.parser import Command, parse
from frugalign.methods.rerank.options import RerankOptions

COMMAND = Command(
    "rerank",
    "DPO on stored preferences whose labels are weighed by a representation reward on the current policy's own hidden states.",
    RerankOptions,
    full="frugalign.methods.rerank.config:RerankConfig",
)


def run(argv: list[str]) -> int:
    """Train, save, say what it cost and what comes next."""
    config = parse(COMMAND, argv)
    from frugalign.methods.rerank.run import train_reranked

    trainer = train_reranked(config)
    if not trainer.is_world_process_zero():
        return 0
    kind = "adapter" if config.use_peft else "policy"
    print(f"The {kind} is in {config.output_dir}, trained in {trainer.ledger.wall_clock_seconds:,.0f} s.")
    print(
        f"Next: frugalign evaluate --model_name_or_path {config.model_name_or_path} --{kind} {config.output_dir} "
        f"--dataset_name PROMPTS --reward REWARD --output_dir {config.output_dir}/evaluation"
    )
    return 0
