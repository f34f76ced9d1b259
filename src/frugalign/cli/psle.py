"""`frugalign psle`: align a model by what it answers under written principles."""

from __future__ import annotations

from frugalign.cli.parser import Command, parse
from frugalign.methods.psle.options import PSLEOptions

COMMAND = Command(
    "psle",
    "Rounds of answering plainly and under principles: clear gains become ranking pairs, everything else demonstrations by its reward.",
    PSLEOptions,
    full="frugalign.methods.psle.config:PSLEConfig",
)


def run(argv: list[str]) -> int:
    """Run the rounds, save, say what it cost and what comes next."""
    config = parse(COMMAND, argv)
    from frugalign.methods.psle.run import train_psle

    trainer = train_psle(config)
    if config.process_index != 0:
        return 0
    kind = "adapter" if config.use_peft else "policy"
    print(
        f"The {kind} is in {config.output_dir}, {config.rounds} rounds in {trainer.ledger.wall_clock_seconds:,.0f} s."
    )
    print(
        f"Next: frugalign report {config.output_dir}, and frugalign evaluate --model_name_or_path {config.model_name_or_path} --{kind} "
        f"{config.output_dir} --dataset_name PROMPTS --reward REWARD --output_dir {config.output_dir}/evaluation"
    )
    return 0
