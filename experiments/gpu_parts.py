"""The parts of `experiments.gpu`: each yields rows, and says nothing of time limits or failures."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from experiments.bases import tokenizer
from experiments.gpu_bases import GB, SHAPES, Shape, copy_bandwidth, random_base, random_prompts, timed, wait_for
from experiments.speed import proxy_for
from transformers import GenerationConfig, TrainerCallback

from frugalign import sandbox
from frugalign.decoding import SamplingParams, generate
from frugalign.decoding.continuous import ContinuousBatch, Row
from frugalign.decoding.loop import LoopOptions
from frugalign.engines.loading import LoadedModel, load_model
from frugalign.engines.transformers import TransformersEngine, embedding_rows
from frugalign.methods.answer_features import Answers, Proposals, answer_features
from frugalign.methods.proxy_rlhf import ProxyConfig, ProxyTrainer
from frugalign.methods.proxy_rlhf.run import train_proxy
from frugalign.methods.rerank.config import RerankConfig
from frugalign.methods.rerank.trainer import RerankTrainer
from frugalign.proxy import attach
from frugalign.proxy.candidates import Limits
from frugalign.proxy.guide import ProxyGuide
from frugalign.proxy.mixed import MixedGuide, RowSettings
from frugalign.runs.layout import read_log
from frugalign.runs.shard_store import ShardStore

Result = dict[str, Any]


@dataclass(frozen=True)
class Machine:
    """What the parts run on. `bandwidth`: measured, in bytes a second; 0 if unknown. `toy`: everything is tiny."""

    device: str
    toy: bool
    bandwidth: float = 0.0

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self.toy else torch.bfloat16

    def label(self, name: str) -> str:
        """What a base is called in the table."""
        return f"{name} (toy)" if self.toy else name

    def shape(self, name: str) -> Shape:
        return SHAPES["toy" if self.toy else name]

    def base(self, name: str) -> LoadedModel:
        return LoadedModel(random_base(self.shape(name), self.device, self.dtype), tokenizer(), f"random-{name}", None)

    def pick(self, full: Any, toy: Any) -> Any:
        return toy if self.toy else full


def bandwidth(machine: Machine) -> Iterator[Result]:
    """Every later part's share is of this."""
    found = copy_bandwidth(machine.device, machine.pick(4 << 30, 1 << 24))
    yield {"what": "copy", "GB a second": found / GB}


# -- decoding -------------------------------------------------------------------------------------------------------------


def decode(machine: Machine, name: str) -> Iterator[Result]:
    """Guided and plain decoding: our loop, `generate`, and continuous batching, ours and transformers'."""
    base = machine.base(name)
    shape, tokens = machine.shape(name), machine.pick(32, 3)
    proxy = proxy_for(base.model)
    for batch in machine.pick((1, 16, 256), (1, 4)):
        prompts = random_prompts(batch, machine.pick(32, 8), shape.vocabulary)
        ways = _loops(base, proxy, prompts) | _generates(base, proxy, prompts)
        if batch > 1:
            ways |= _continuous(base, proxy, prompts)
        for label, way in ways.items():
            yield from _decoded(f"{machine.label(name)}, batch {batch}: {label}", machine, shape, way, prompts, tokens)


def _decoded(
    label: str,
    machine: Machine,
    shape: Shape,
    way: Callable[[int], Any],
    prompts: list[list[int]],
    tokens: int,
    warm_up: int = 2,
) -> Iterator[Result]:
    """A row of one alternative. What raises is a row too, and the next one is measured.

    The seconds are those between a run of `tokens` and one of twice as many, so prompts and preparations do not count.
    """
    batch = len(prompts)
    try:
        way(warm_up)
        short = timed(machine.device, lambda: way(tokens))
        found = timed(machine.device, lambda: way(2 * tokens))
    except Exception as error:  # a library that refuses an alternative must not end the others
        yield {"what": label, "failed": reason(error)}
        return
    seconds = found.seconds - short.seconds
    if seconds <= 0:  # toys are too short
        seconds = found.seconds / 2
    context = len(prompts[0]) + 1.5 * tokens
    itemsize = machine.dtype.itemsize
    least = (shape.read_weights * itemsize + batch * context * shape.kv_bytes(itemsize)) * tokens
    yield {
        "what": label,
        "tokens a second": batch * tokens / seconds,
        "ms a step": 1000 * seconds / tokens,
        "share of bandwidth": least / seconds / machine.bandwidth if machine.bandwidth else None,
        "peak GB": found.peak / GB,
    }


def reason(error: BaseException) -> str:
    """An exception in a line."""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[:200]


def _loops(base: LoadedModel, proxy: Any, prompts: list[list[int]]) -> dict[str, Callable[[int], Any]]:
    engine, options = TransformersEngine(base.model, base.tokenizer), LoopOptions(batch_size=len(prompts))
    guide = ProxyGuide.build([proxy], embedding_rows(base.model))

    def run(guide: Any, tokens: int) -> Any:
        return generate(engine, prompts, SamplingParams(max_new_tokens=tokens), guide=guide, options=options)

    return {"our loop, plain": partial(run, None), "our loop, guided": partial(run, guide)}


def _generates(
    base: LoadedModel, proxy: Any, prompts: list[list[int]], **settings: Any
) -> dict[str, Callable[[int], Any]]:
    ids = torch.tensor(prompts, device=base.model.device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def plain(tokens: int) -> Any:
        kinds = {"do_sample": True, "top_k": 0, "top_p": 1.0, "max_new_tokens": tokens, "min_new_tokens": tokens}
        return base.model.generate(**inputs, **kinds, **settings)

    def guided(tokens: int) -> Any:
        with attach(base.model, proxy):
            return plain(tokens)

    return {"generate, plain": plain, "generate, guided": guided}


def _continuous(base: LoadedModel, proxy: Any, prompts: list[list[int]]) -> dict[str, Callable[[int], Any]]:
    engine = TransformersEngine(base.model, base.tokenizer)
    guide = MixedGuide({"p": proxy}, embedding_rows(base.model))

    def ours(settings: Callable[[], RowSettings], tokens: int) -> None:
        batch = ContinuousBatch(engine, guide)
        batch.add([Row(ids, key, tokens, settings()) for key, ids in enumerate(prompts)])
        while batch.rows:
            batch.step()

    def theirs(is_guided: bool, tokens: int) -> Any:
        from transformers import ContinuousBatchingConfig

        pages = len(prompts) * (1 + (len(prompts[0]) + tokens) // 64) + 8
        wanted = GenerationConfig(max_new_tokens=tokens, do_sample=True, top_k=0, eos_token_id=-1, pad_token_id=0)
        paging = ContinuousBatchingConfig(page_size=64, num_blocks=pages)
        if not is_guided:
            return base.model.generate_batch(prompts, generation_config=wanted, continuous_batching_config=paging)
        with attach(base.model, proxy):
            return base.model.generate_batch(prompts, generation_config=wanted, continuous_batching_config=paging)

    return {
        "continuous, ours, plain": partial(ours, RowSettings),
        "continuous, ours, guided": partial(ours, lambda: RowSettings(("p",), (1.0,))),
        "continuous, transformers, plain": partial(theirs, False),
        "continuous, transformers, guided": partial(theirs, True),
    }


def static(machine: Machine, name: str) -> Iterator[Result]:
    """A static cache, with which transformers compiles the step and replays it as a CUDA graph. On a CPU it compiles nothing."""
    base, tokens = machine.base(name), machine.pick(32, 3)
    proxy, shape = proxy_for(base.model), machine.shape(name)
    for batch in machine.pick((1, 16), (2,)):
        prompts = random_prompts(batch, machine.pick(32, 8), shape.vocabulary)
        for label, way in _generates(base, proxy, prompts, cache_implementation="static").items():
            torch._dynamo.reset()  # a step that was compiled without hooks would go on ignoring them
            what = f"{machine.label(name)}, batch {batch}: {label}, static cache"
            # The longest run first, so that the others find its cache and compile nothing.
            yield from _decoded(what, machine, shape, way, prompts, tokens, warm_up=2 * tokens)


# -- training -------------------------------------------------------------------------------------------------------------


def train(machine: Machine, name: str) -> Iterator[Result]:
    """A proxy's round, a feature pass beside a plain forward pass, and steps of re-ranking with LoRA."""
    base = machine.base(name)
    yield from _proxy_round(machine, base, name)
    yield from _feature_pass(machine, base, name)
    yield from _rerank_steps(machine, base, name)


def last_digits(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """A reward that differs between responses of random tokens."""
    return [float(sum(ids) % 10) for ids in completion_ids]


def _proxy_round(machine: Machine, base: LoadedModel, name: str) -> Iterator[Result]:
    responses, tokens = machine.pick(64, 8), machine.pick(64, 4)
    prompts = ["Good day, keeper. A balm for my horse."] * (responses // 4)
    with tempfile.TemporaryDirectory() as folder:
        args = ProxyConfig(
            output_dir=folder,
            max_new_tokens=tokens,
            num_generations=4,
            per_device_train_batch_size=responses,
            max_steps=4,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=machine.toy,
        )
        trainer = ProxyTrainer(base, last_digits, args, Dataset.from_dict({"prompt": prompts}))
        found = timed(machine.device, trainer.train)
    seconds = trainer.ledger.seconds
    yield {
        "what": f"{machine.label(name)}: a proxy's round, {responses} × {tokens} tokens",
        "tokens a second": trainer.ledger.generated_tokens / seconds["rollout"],
        "seconds": found.seconds,
        "optimise / rollout": seconds["optimise"] / seconds["rollout"],
        "peak GB": found.peak / GB,
    }


def _feature_pass(machine: Machine, base: LoadedModel, name: str) -> Iterator[Result]:
    n, length = machine.pick(64, 4), machine.pick(256, 8)
    ids = random_prompts(n, length, machine.shape(name).vocabulary)
    answers = Answers([row[: length // 4] for row in ids], [row[length // 4 :] for row in ids])
    proposals = Proposals(1.0, Limits(0.01, 256))

    def plain() -> None:
        with torch.no_grad():
            for start in range(0, n, 8):
                base.model(torch.tensor(ids[start : start + 8], device=machine.device), use_cache=False)

    def features() -> None:
        with tempfile.TemporaryDirectory() as folder:
            answer_features(base.model, base.tokenizer, answers, proposals, ShardStore(folder))

    for label, run in (("a plain forward pass", plain), ("a feature pass", features)):
        run()
        found = timed(machine.device, run)
        rate = n * length / found.seconds
        flops = 2 * machine.shape(name).read_weights * rate
        row = {
            "what": f"{machine.label(name)}: {label}, {n} × {length} tokens",
            "tokens a second": rate,
            "seconds": found.seconds,
        }
        yield row | {"TFLOP/s": flops / 1e12, "peak GB": found.peak / GB}


class _Steps(TrainerCallback):
    """When steps ended."""

    def __init__(self, device: str) -> None:
        self.device, self.ends = device, [time.perf_counter()]

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        wait_for(self.device)
        self.ends.append(time.perf_counter())


def _rerank_steps(machine: Machine, base: LoadedModel, name: str) -> Iterator[Result]:
    pairs, words = machine.pick(4, 2), machine.pick(60, 6)
    row = {"prompt": "A balm for my horse. " * 3, "chosen": "Gladly. " * words, "rejected": "Never. " * words}
    steps = _Steps(machine.device)
    with tempfile.TemporaryDirectory() as folder:
        args = RerankConfig(
            output_dir=folder,
            confidence="constant",
            per_device_train_batch_size=pairs,
            max_steps=4,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=machine.toy,
        )
        data = Dataset.from_list([row] * (4 * pairs))
        trainer = RerankTrainer(base.model, None, args, data, processing_class=base.tokenizer, callbacks=[steps])
        found = timed(machine.device, trainer.train)
    between = [after - before for before, after in zip(steps.ends[1:], steps.ends[2:], strict=False)]
    fed = trainer.ledger.lm_forward_tokens / args.max_steps
    yield {
        "what": f"{machine.label(name)}: a step of re-ranking, LoRA, {pairs} pairs",
        "tokens a second": fed / statistics.median(between),
        "seconds": statistics.median(between),
        "peak GB": found.peak / GB,
    }


# -- loading, learning ----------------------------------------------------------------------------------------------------


def loading(machine: Machine, name: str) -> Iterator[Result]:
    """A base on the disk, loaded as a command does: in its own dtype, over the devices there are, and in 4 bits."""
    batch, tokens, shape = machine.pick(16, 2), machine.pick(32, 4), machine.shape(name)
    prompts = random_prompts(batch, machine.pick(32, 8), shape.vocabulary)
    with tempfile.TemporaryDirectory() as folder:
        base = machine.base(name)
        base.model.save_pretrained(folder)
        base.tokenizer.save_pretrained(folder)
        del base
        here = machine.device
        for label, options in {
            "as saved": {"device_map": here},
            "device_map auto": {"device_map": "auto"},
            "4 bits": {"device_map": here, "load_in_4bit": True},
        }.items():
            what = f"{machine.label(name)}: {label}, batch {batch}, guided"
            if "load_in_4bit" in options and find_spec("bitsandbytes") is None:
                yield {"what": what, "failed": "bitsandbytes is not installed"}
                continue
            loaded = load_model(folder, dtype="auto", **options)
            way = _loops(loaded, proxy_for(loaded.model), prompts)["our loop, guided"]
            for row in _decoded(what, machine, shape, way, prompts, tokens):
                # The weights of 4 bits are fewer bytes than `_decoded` counts.
                yield row | ({"share of bandwidth": None} if "load_in_4bit" in options else {})
            del loaded, way


def learn(machine: Machine) -> Iterator[Result]:
    """A proxy learns on the sandbox, by the default command: the mean reward of its first and of its last rollouts."""
    with tempfile.TemporaryDirectory() as folder:
        config = ProxyConfig(
            model_name_or_path="frugalign.sandbox:model",
            dataset_name="frugalign.sandbox:prompts",
            reward=["frugalign.sandbox:learned"],
            output_dir=str(Path(folder) / "run"),
            max_new_tokens=machine.pick(32, 8),
            target_kl=3.0,
            budget_tokens=machine.pick(60_000, 600),
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=machine.toy,
        )
        found = timed(machine.device, lambda: train_proxy(config))
        log = [line for line in read_log(Path(str(config.output_dir))) if "reward" in line]
    rewards = [line["reward"] for line in log]
    few = max(1, min(5, len(rewards) // 2))
    yield {
        "what": f"the sandbox's base ({Path(sandbox.model).name}), {len(rewards)} rollouts",
        "reward, first": statistics.mean(rewards[:few]),
        "reward, last": statistics.mean(rewards[-few:]),
        "KL, nats": log[-1].get("kl"),
        "seconds": found.seconds,
    }
