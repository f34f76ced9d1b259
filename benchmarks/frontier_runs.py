"""One run of the frontier benchmark: train a policy, and measure it on held-out training prompts along the way.

Every policy is sampled by the same decoding loop under the same noise, and its KL to the base is exact over the full vocabulary; a
fine-tuned model, LoRA merged, is measured teacher-forced on its own samples. Test prompts are not read here.
"""

from __future__ import annotations

import copy
import os
import resource
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from benchmarks import stories
from benchmarks.frontier_settings import Budget, Setting
from benchmarks.trials import trials
from datasets import Dataset
from transformers import PreTrainedModel, PrinterCallback, ProgressCallback, TrainerCallback

from frugalign.base.ledger import Ledger
from frugalign.data import encode_prompts
from frugalign.decoding.loop import SamplingParams
from frugalign.decoding.noise import row_keys
from frugalign.engines.loading import LoadedModel, load_model
from frugalign.methods.proxy_rlhf.config import ProxyConfig
from frugalign.methods.proxy_rlhf.trainer import ProxyTrainer
from frugalign.metrics import mean_interval
from frugalign.policies.policy import Policy, divergence, load_policy, sample_policy
from frugalign.policies.prompt_rows import Asked
from frugalign.proxy.network import ProxyModel, new_proxy

VALIDATION_SEED, TEST_SEED = 11, 12


@dataclass(frozen=True)
class Measured:
    """A policy on some prompts, a row per completion; `prompt[i]` is the row's prompt, `sample[i]` its number."""

    reward: list[float]
    kl: list[float]
    prompt: list[int]
    sample: list[int]

    def means(self) -> dict[str, float]:
        return {"reward": sum(self.reward) / len(self.reward), "kl": sum(self.kl) / len(self.kl)}


def load_base() -> LoadedModel:
    """The frozen base; its path is where TRL loads its reference from as well."""
    return load_model(str(trials() / "models" / "stories260k"), dtype="float32")


def validation_split(budget: Budget) -> tuple[list[str], list[str]]:
    """(prompts to train on, prompts to select on). Selection uses prompts that occur once: like the test's, never trained on."""
    train, _ = stories.prompts(trials())
    counts = Counter(train)
    once = [prompt for prompt in train if counts[prompt] == 1]
    step = len(once) // budget.validation_prompts
    chosen = once[::step][: budget.validation_prompts]
    held_out = set(chosen)
    return [prompt for prompt in train if prompt not in held_out], chosen


def measure(
    policy: Policy, base: LoadedModel, prompts: list[str], samples: int, seed: int, new_tokens: int
) -> Measured:
    """Sample `samples` completions of every prompt and score them; the noise depends on prompt and sample alone."""
    index = [row for row in range(len(prompts)) for _ in range(samples)]
    numbers = [number for _ in prompts for number in range(samples)]
    encoded = encode_prompts(prompts, base.tokenizer, max_new_tokens=new_tokens, prompt_format="raw")
    ids = [encoded.ids[row] for row in index]
    params, ledger = SamplingParams(new_tokens, 1.0), Ledger()
    asked = Asked([prompts[row] for row in index])
    sampled = sample_policy(policy, base, asked, ids, params, row_keys(seed, 0, index, numbers), 128, ledger)
    kl = divergence(policy, ids, sampled, params, ledger).kl
    assert kl is not None
    texts = base.tokenizer.batch_decode(sampled.completion_ids, skip_special_tokens=True)
    return Measured(stories.reward(texts), kl, index, numbers)


def proxy_policy(proxy: ProxyModel, base: LoadedModel) -> Policy:
    return Policy("proxy", base.model, base.model, proxy.num_parameters(), guide=proxy.guide(base.model))


def load_checkpoint(method: str, folder: Path, base: LoadedModel) -> Policy:
    """A policy from a checkpoint that a run left: a proxy, or a whole model (LoRA merged)."""
    if method in ("rloo", "rloo-lora"):
        tuned: Any = type(base.model).from_pretrained(folder, dtype=torch.float32)
        tuned.eval()
        return Policy("policy", tuned, base.model, tuned.num_parameters())
    return load_policy(base, proxy=str(folder))


def test_checkpoint(run: dict[str, Any], point: dict[str, Any], budget: Budget, work: Path) -> dict[str, Any]:
    """Reward and KL of a chosen checkpoint on the test prompts, intervals over prompts."""
    base = load_base()
    if run["method"] == "untrained":
        setting = Setting(run["method"], run["options"])
        policy = proxy_policy(new_proxy(base.model, _proxy_config(setting, budget, work).network()), base)
    else:
        policy = load_checkpoint(run["method"], work / run["name"] / point["checkpoint"], base)
    return _on_test(policy, base, budget)


def test_base(budget: Budget) -> dict[str, Any]:
    """The base itself on the test prompts, on the same noise."""
    base = load_base()
    return _on_test(Policy("base", base.model, base.model, 0), base, budget)


def _on_test(policy: Policy, base: LoadedModel, budget: Budget) -> dict[str, Any]:
    prompts = stories.prompts(trials())[1] if budget.reads_test else validation_split(budget)[1]
    found = measure(policy, base, prompts, budget.test_samples, TEST_SEED, budget.new_tokens)
    first = [number < 2 for number in found.sample]
    two = [(value, row) for value, row, early in zip(found.reward, found.prompt, first, strict=True) if early]
    return {
        "prompts": len(prompts),
        "samples": budget.test_samples,
        "reward": _interval(found.reward, found.prompt),
        "kl": _interval(found.kl, found.prompt),
        "reward_first_two_samples": _interval([value for value, _ in two], [row for _, row in two]),
    }


def _interval(values: list[float], prompts: list[int]) -> dict[str, float | int]:
    estimate = mean_interval(values, prompts)
    assert estimate is not None
    return estimate.to_dict()


@dataclass
class Watch(TrainerCallback):
    """Measures and saves the policy before training and at even distances along it; its own time does not count as training."""

    every: int
    snapshot: Callable[[Path], Policy]
    measure: Callable[[Policy], dict[str, float]]
    folder: Path
    tokens: list[int]
    points: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    cpu_seconds: float = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._look(0)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            self._look(state.global_step)

    def _look(self, step: int) -> None:
        started, cpu = time.perf_counter(), time.process_time()
        folder = self.folder / f"step-{step:04d}"
        point = self.measure(self.snapshot(folder))
        self.points.append({"step": step, "tokens": sum(self.tokens), "checkpoint": folder.name} | point)
        print(f"    step {step:4d}  reward {point['reward']:+.3f}  KL {point['kl']:6.2f}", flush=True)
        self.seconds += time.perf_counter() - started
        self.cpu_seconds += time.process_time() - cpu


def counting_reward(tokens: list[int]) -> Callable[..., list[float]]:
    """The reward, noting how many tokens were sampled: counted alike for both trainers."""

    def sadness(completions: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        tokens.append(sum(len(ids) for ids in completion_ids))
        return stories.reward(completions)

    return sadness


def run(setting: Setting, budget: Budget, folder: Path) -> dict[str, Any]:
    """Train one setting with the whole budget (nothing, for the untrained proxy); checkpoints go into `folder`."""
    base = load_base()
    train, validation = validation_split(budget)

    def look(policy: Policy) -> dict[str, float]:
        samples = budget.validation_samples
        return measure(policy, base, validation, samples, VALIDATION_SEED, budget.new_tokens).means()

    if setting.method == "untrained":
        proxy = new_proxy(base.model, _proxy_config(setting, budget, folder).network())
        point = {"step": 0, "tokens": 0} | look(proxy_policy(proxy, base))
        return {"trajectory": [point], "sampled_tokens": 0, "seconds": 0.0, "cpu_seconds": 0.0}
    tokens: list[int] = []
    build = _rloo_trainer if setting.method.startswith("rloo") else _proxy_trainer
    trainer, snapshot = build(setting, budget, folder, base, train, counting_reward(tokens))
    every = trainer.args.max_steps // budget.checkpoints
    watch = Watch(every, snapshot, look, folder, tokens)
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(watch)
    started, cpu = time.perf_counter(), time.process_time()
    trainer.train()
    return {
        "trajectory": watch.points,
        "sampled_tokens": sum(tokens),
        "seconds": time.perf_counter() - started - watch.seconds,
        "cpu_seconds": time.process_time() - cpu - watch.cpu_seconds,
        "trainable_parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


Build = tuple[Any, Callable[[Path], Policy]]
"""A trainer, and what saves its policy as it is now and makes it ready to sample."""


def _proxy_config(setting: Setting, budget: Budget, folder: Path) -> ProxyConfig:
    """Everything but the setting's own options is the proxy's default."""
    config = ProxyConfig(
        output_dir=str(folder / "trainer"),
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
        max_new_tokens=budget.new_tokens,
        temperature=1.0,
        prompt_format="raw",
        per_device_train_batch_size=budget.completions,
        num_generations=budget.num_generations,
        candidate_features="token_bias" if setting.method == "token-bias" else "embedding",
        **setting.options,
    )
    config.max_steps = budget.rollouts * config.steps_per_rollout
    return config


def _proxy_trainer(
    setting: Setting, budget: Budget, folder: Path, base: LoadedModel, train: list[str], reward: Callable[..., Any]
) -> Build:
    trainer: Any = ProxyTrainer(
        model=base.model,
        reward_funcs=reward,
        args=_proxy_config(setting, budget, folder),
        train_dataset=Dataset.from_dict({"prompt": train}),
        processing_class=base.tokenizer,
        base_name=base.name,
    )

    def snapshot(target: Path) -> Policy:
        trainer.model.save_pretrained(target)
        return proxy_policy(trainer.model, base)

    return trainer, snapshot


def _rloo_trainer(
    setting: Setting, budget: Budget, folder: Path, base: LoadedModel, train: list[str], reward: Callable[..., Any]
) -> Build:
    """TRL's own trainer in float32, sampling from the full distribution, two optimiser steps a rollout as the proxy takes."""
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    from peft import LoraConfig
    from trl import RLOOConfig, RLOOTrainer  # type: ignore[attr-defined]

    options = dict(setting.options)
    rank = options.pop("r", None)
    steps = int(options.pop("steps_per_generation", 2))
    lora = None
    if rank is not None:
        lora = LoraConfig(
            r=int(rank), lora_alpha=2 * int(rank), target_modules="all-linear", lora_dropout=0.0, task_type="CAUSAL_LM"
        )
    args = RLOOConfig(
        output_dir=str(folder / "trainer"),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        save_strategy="no",
        logging_steps=10_000,
        disable_tqdm=True,
        max_steps=budget.rollouts * steps,
        per_device_train_batch_size=budget.completions // steps,
        steps_per_generation=steps,
        num_generations=budget.num_generations,
        max_completion_length=budget.new_tokens,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        seed=0,
        **options,
    )
    trainer: Any = RLOOTrainer(
        model=type(base.model).from_pretrained(base.name, dtype=torch.float32),
        reward_funcs=reward,
        args=args,
        train_dataset=Dataset.from_dict({"prompt": train}),
        processing_class=copy.deepcopy(base.tokenizer),
        peft_config=lora,
    )
    tuned: PreTrainedModel = copy.deepcopy(base.model)
    policy = Policy("policy", tuned, base.model, tuned.num_parameters())

    def snapshot(target: Path) -> Policy:
        """The trained weights, LoRA merged, in a plain model: TRL's own carries a patched forward."""
        whole: Any = trainer.model
        if lora is not None:
            whole = copy.deepcopy(whole).merge_and_unload()
        tuned.load_state_dict(whole.state_dict())
        tuned.save_pretrained(target)
        return policy

    return trainer, snapshot
