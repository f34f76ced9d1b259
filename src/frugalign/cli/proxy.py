"""`frugalign proxy`: train a proxy for a frozen model."""

from __future__ import annotations

from frugalign.cli.parser import Command, parse
from frugalign.methods.proxy_rlhf.options import ProxyOptions

COMMAND = Command(
    "proxy",
    "Train a proxy of under 1 % of a frozen model's parameters that accepts or rejects every token it proposes.",
    ProxyOptions,
    full="frugalign.methods.proxy_rlhf.config:ProxyConfig",
)


def run(argv: list[str]) -> int:
    """Train, save, say what it cost and what comes next."""
    config = parse(COMMAND, argv)
    from frugalign.methods.proxy_rlhf.run import train_proxy

    trainer = train_proxy(config)
    if not trainer.is_world_process_zero():
        return 0
    share = trainer.ledger.shares["of_base"] or 0.0
    print(
        f"A proxy of {trainer.ledger.trainable_parameters:,} parameters ({share:.2%} of its base, of full fine-tuning; "
        f"{share / 2:.2%} of PPO), trained in {trainer.ledger.wall_clock_seconds:,.0f} s, is in {config.output_dir}."
    )
    rewards = " ".join(f"--reward {spec}" for spec in config.reward)
    print(
        f"Next: frugalign evaluate --model_name_or_path {config.model_name_or_path} --proxy {config.output_dir} "
        f"--dataset_name {config.dataset_name} {rewards} --output_dir {config.output_dir}/evaluation"
    )
    return 0
