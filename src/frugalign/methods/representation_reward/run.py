"""`frugalign reward`: train a representation reward on preference data, and measure it on held-out prompts.

Data is split by prompt. The validation prompts stop the fit, choose the layers and the penalty, and calibrate the reward. The test prompts are
used once, for the report.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from frugalign.base.cards import CardTables, model_card
from frugalign.base.errors import FrugalignError
from frugalign.base.files import CARD_FILE, write_atomic, write_json_atomic
from frugalign.base.ledger import Ledger
from frugalign.base.progress import FITTED, work
from frugalign.base.progress_display import showing
from frugalign.data.labelled import PreferenceData, load_preference_data
from frugalign.engines.fingerprints import fingerprint
from frugalign.engines.loading import LoadedModel, has_classifier, load_model
from frugalign.engines.states import read_ids, resolve_layers
from frugalign.evaluation.schema import few_prompts
from frugalign.methods.representation_reward.examples import (
    Split,
    encode_answers,
    examples_of,
    joined,
    read_examples,
    shared_prompts,
)
from frugalign.methods.representation_reward.feature_store import Features, FeatureStore, LayerColumns, States
from frugalign.methods.representation_reward.measures import (
    CURVE,
    Chosen,
    fit_options,
    group_note,
    measure,
    measure_accuracy,
)
from frugalign.methods.representation_reward.options import RewardOptions
from frugalign.methods.representation_reward.tracking import track
from frugalign.options.loading import model_arguments
from frugalign.options.training_parts import check_hub, check_trackers
from frugalign.rewards.representation.fit import calibrate, fit, raw_rewards
from frugalign.rewards.representation.network import RepresentationModel
from frugalign.runs.checkpoints import refuse_earlier_run
from frugalign.runs.folder import open_run_folder, publish
from frugalign.runs.hub import push_if_asked
from frugalign.runs.layout import COSTS_FILE, REWARD_REPORT_FILE
from frugalign.runs.lock import in_use

_log = logging.getLogger(__name__)


def train_reward(options: RewardOptions) -> dict[str, Any]:
    """Fit, calibrate and save a representation reward, with its report and costs.

    Returns:
        The report.

    Raises:
        FrugalignError: a user error.
    """
    for name in ("model_name_or_path", "dataset_name"):
        if not getattr(options, name):
            raise FrugalignError(f"--{name} is missing.")
    check_trackers(options.report_to or ())
    if options.push_to_hub:
        check_hub()
    folder = str(options.output_dir)
    with in_use(folder), showing():
        return _train(options, open_run_folder(folder))


def _train(options: RewardOptions, folder: Path) -> dict[str, Any]:
    assert options.model_name_or_path is not None and options.dataset_name is not None
    refuse_earlier_run(folder, options.overwrite_output_dir)
    ledger = Ledger()
    preferences, split = read_examples(options.dataset_name, options)
    _check_full_model(options, preferences)
    if options.eval_group_column is not None and not options.eval_dataset_name:
        raise FrugalignError("eval_group_column needs --eval_dataset_name: it is a column of that data.")
    elsewhere = {
        name: joined(load_preference_data(name, options.eval_group_column)) for name in options.eval_dataset_name
    }
    with ledger.phase("load"):
        base = load_model(options.model_name_or_path, **model_arguments(options))
    if options.full_model and not has_classifier(base.model):
        raise FrugalignError(f"full_model: transformers has no sequence classifier for {base.model.config.model_type}.")
    store = FeatureStore(
        options.cache_dir or Path.home() / ".cache" / "frugalign" / "states", max_gib=options.max_cache_gib
    )
    layers = resolve_layers(base.model, options.layers)
    with ledger.phase("read"):
        features = states_of(preferences, base, layers, options, store, ledger)
    tokens = ledger.lm_forward_tokens  # of these answers; the other data sets are read later
    with ledger.phase("optimise"):
        chosen, candidates = fit_best(preferences, features, split, layers, options)
    probes, read = chosen.fitted.model, chosen.read
    set_calibration(probes, preferences, read, split)
    _describe(probes, base, split, options)
    ledger.set_parameters(trainable=sum(p.numel() for p in probes.parameters()), base=base.model.num_parameters())
    # The controls refit the probes: on shuffled labels, on parts of the data, on each layer.
    refits = options.n_shuffles + len(CURVE) - 1 + len(layers)
    with ledger.phase("evaluate"), work("controls", refits * options.max_iterations, FITTED):
        report = {
            "settings": asdict(options) | {"layers": chosen.layers, "chosen_weight_decay": chosen.penalty},
            "layer_candidates": candidates,
            "examples": {"train": len(split.train), "validation": len(split.validation), "test": len(split.test)},
            "shared_prompts": shared_prompts(preferences, split),
            "answers": len(preferences.answers),
            "paired": preferences.is_paired,
            "dropped_equal_pairs": preferences.n_dropped,
            "fit": {"history": chosen.fitted.history, "best_iteration": chosen.fitted.best_iteration},
            **measure(chosen, preferences, split, features, layers, options),
            "elsewhere": {
                name: measure_accuracy(probes, other, states_of(other, base, chosen.layers, options, store, ledger))
                | {"shared_prompts": shared_prompts(preferences, split, other)}
                for name, other in elsewhere.items()
            },
        }
        report["group_note"] = group_note(report["elsewhere"])
        if options.full_model:
            from frugalign.methods.representation_reward.full_model_baseline import train_full_model

            report["full_model"] = train_full_model(preferences, base, split, options)
    if few := few_prompts(len(split.test), "test example"):
        _log.warning(few)
    report["cost"] = _cost(ledger, preferences, base, tokens)
    track(options, probes, report)
    _save(folder, probes, report, options, ledger)
    return report


def _check_full_model(options: RewardOptions, preferences: PreferenceData) -> None:
    """Check the requirements of `full_model` before anything is computed."""
    if options.full_model and not preferences.is_paired:
        raise FrugalignError("full_model needs pairs: a whole reward model is trained on them.")
    if options.full_model and (options.adapter is not None or options.load_in_4bit):
        raise FrugalignError(
            "full_model trains every weight of the model: it takes neither an adapter nor load_in_4bit."
        )


def _describe(probes: RepresentationModel, base: LoadedModel, split: Split, options: RewardOptions) -> None:
    """Store in the probes' config what they were fitted on."""
    config = probes.config
    config.base = fingerprint(
        base.model, base.tokenizer, name=base.name, revision=options.revision, adapter=options.adapter
    ).to_dict()
    config.max_length, config.prompt_format = options.max_length, options.prompt_format
    config.chat_template_kwargs = options.chat_template_kwargs
    config.trained_on = {"name": options.dataset_name, "examples": len(split.train)}


def _save(
    folder: Path, probes: RepresentationModel, report: dict[str, Any], options: RewardOptions, ledger: Ledger
) -> None:
    """Write the probes, the report, the costs and the card."""
    write_json_atomic(folder / REWARD_REPORT_FILE, report)
    ledger.save(folder / COSTS_FILE)
    name = str(options.model_name_or_path)
    card = model_card(
        title=f"Representation reward for {name}",
        description="Linear probes on the model's own hidden states (arXiv 2503.10093); the reward is calibrated to log-odds.",
        base_model=name,
        tables=CardTables(
            settings=asdict(options),
            results={
                "held-out accuracy": report["test"]["accuracy"]["mean"],
                "shuffled labels": report["shuffled"]["mean"],
            },
            costs=ledger.table(),
        ),
        usage=f"from frugalign.rewards import load_reward\n\nreward = load_reward({str(folder)!r}).function",
    )
    write_atomic(folder / CARD_FILE, card)
    publish(folder, probes.save_pretrained)
    push_if_asked(folder, options)


def states_of(
    preferences: PreferenceData,
    base: LoadedModel,
    layers: Sequence[int],
    options: RewardOptions,
    store: FeatureStore,
    ledger: Ledger,
) -> Features:
    """The endpoint states of every answer, from the store.

    States that the store already holds count as what they cost when they were computed. A run that was killed and resumed
    thus reports the costs of an uninterrupted one.
    """
    ids = read_ids(encode_answers(preferences, base, options), base.tokenizer)
    found = store.features(base.model, base.tokenizer, ids, layers)
    ledger.count(lm_forward_tokens=sum(map(len, ids)))
    return found


def fit_best(
    preferences: PreferenceData, features: Features, split: Split, layers: Sequence[int], options: RewardOptions
) -> tuple[Chosen, list[dict[str, Any]]]:
    """Fit every block of layers with every penalty. Returns the fit with the lowest validation loss, and the best of each block."""
    blocks = layer_blocks(len(layers)) if options.layers is None else [list(range(len(layers)))]
    train, validation = examples_of(preferences, split.train), examples_of(preferences, split.validation)
    settings, best = fit_options(options), []
    with work("fit", len(blocks) * len(options.weight_decay) * options.max_iterations, FITTED):
        for columns in blocks:
            read, block = LayerColumns(features, columns), [layers[column] for column in columns]
            found = []
            for penalty in options.weight_decay:
                one = replace(settings, weight_decay=penalty)
                fitted = fit(read.__getitem__, train, validation, block, features.shape[2], one)
                found.append(Chosen(fitted, read, block, penalty))
            best.append(min(found, key=lambda each: each.fitted.validation_loss))
    candidates = [
        {"layers": each.layers, "weight_decay": each.penalty, "validation_loss": each.fitted.validation_loss}
        for each in best
    ]
    return min(best, key=lambda each: each.fitted.validation_loss), candidates


def layer_blocks(depth: int) -> list[list[int]]:
    """The candidates among `depth` layers, as columns: each third of them, and all. The thirds are as equal as can be."""
    parts = min(3, depth)
    edges = [round(part * depth / parts) for part in range(parts + 1)]
    thirds = [list(range(start, stop)) for start, stop in pairwise(edges)] if parts > 1 else []
    return [*thirds, list(range(depth))]


def set_calibration(probes: RepresentationModel, preferences: PreferenceData, features: States, split: Split) -> None:
    """Set `μ` and `t̂` from the validation examples. Single labelled answers are paired across labels."""
    if preferences.is_paired:
        pairs = [preferences.pairs[example] for example in split.validation]
    else:
        good, bad = preferences.better_and_worse(split.validation)
        pairs = [(a, b) for a in good for b in bad][:100_000]
    if not pairs:
        raise FrugalignError(
            "The validation prompts hold no better and worse answer, so the reward cannot be calibrated."
        )
    rows = sorted({row for pair in pairs for row in pair})
    rewards = dict(zip(rows, raw_rewards(probes, features.__getitem__, torch.tensor(rows)).tolist(), strict=True))
    calibrate(probes, *(torch.tensor([rewards[pair[side]] for pair in pairs]) for side in (0, 1)))


def _cost(ledger: Ledger, preferences: PreferenceData, base: LoadedModel, tokens: int) -> dict[str, Any]:
    """Seconds of extraction and fitting, and FLOPs of the forward passes (2 per parameter and token), per 1,000 examples."""
    thousands = max(1, len(preferences)) / 1000
    return {
        "seconds_extracting_per_1000": ledger.seconds["read"] / thousands,
        "seconds_fitting_per_1000": ledger.seconds.get("optimise", 0.0) / thousands,
        "flops_extracting_per_1000": 2.0 * base.model.num_parameters() * tokens / thousands,
        "tokens": tokens,
    }
