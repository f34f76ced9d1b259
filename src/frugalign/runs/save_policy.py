"""Save a trained policy in the run folder, and read what it was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import LoraConfig

from frugalign.base.cards import CardTables, model_card
from frugalign.base.files import CARD_FILE, write_atomic, write_json_atomic
from frugalign.base.ledger import Ledger
from frugalign.engines.adapters import record_adapter
from frugalign.engines.fingerprints import fingerprint
from frugalign.engines.model_records import record_model
from frugalign.options.groups import KINDS
from frugalign.runs.folder import open_run_folder, publish
from frugalign.runs.hub import push_if_asked
from frugalign.runs.layout import COSTS_FILE, TRAINED_ON_FILE, read_trained_on


def lora_of(options: Any) -> LoraConfig:
    """A LoRA on all linear layers of a causal LM, with `options.lora_r` and `options.lora_alpha`."""
    return LoraConfig(
        r=options.lora_r, lora_alpha=options.lora_alpha, target_modules="all-linear", task_type="CAUSAL_LM"
    )


def save_policy(
    policy: Any,
    tokenizer: Any,
    args: Any,
    ledger: Ledger,
    *,
    trained_on: dict[str, Any],
    done: str,
    description: str,
) -> None:
    """Write the policy and its files into the run folder, `args.output_dir`, and upload it if that is asked for.

    The files are the adapter, the model or the proxy, the tokenizer of the first two, the card, the costs and `trained_on`.

    Args:
        trained_on: the training prompts, as `about_training` describes them.
        done: how the policy was trained, in a word or two, for the card's title.
        description: one sentence for the card.
    """
    folder = open_run_folder(str(args.output_dir))
    kind = KINDS[args.train]
    card = model_card(
        title=f"{args.model_name_or_path or 'a causal language model'}, {done}",
        description=description,
        base_model=str(args.model_name_or_path or ""),
        tables=CardTables(settings=args.options(), costs=ledger.table()),
        usage=f"frugalign evaluate --model_name_or_path {args.model_name_or_path} --{kind} {folder} --dataset_name PROMPTS --reward REWARD",
    )
    write_json_atomic(folder / TRAINED_ON_FILE, trained_on)
    if args.train == "proxy":
        policy.config.trained_on = trained_on
    ledger.save(folder / COSTS_FILE)

    def save(staged: Path) -> None:
        policy.save_pretrained(staged)
        if args.train != "proxy":
            tokenizer.save_pretrained(staged)
        if args.train == "lora":
            record_adapter(staged, fingerprint(policy, tokenizer, without_adapter=True))
        elif args.train == "full":
            record_model(staged)
        write_atomic(staged / CARD_FILE, card)  # in place of PEFT's template

    publish(folder, save)
    push_if_asked(folder, args)


def trained_on_of(name: str | None) -> dict[str, Any] | None:
    """The training prompts of the policy in a run folder or in a round's folder; None if unknown."""
    for folder in () if name is None else (Path(name), Path(name).parent):
        found = read_trained_on(folder)
        if found:
            return found
    return None
