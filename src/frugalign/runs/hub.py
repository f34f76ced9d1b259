"""Upload a finished artefact to the Hugging Face Hub: its files and its card in one commit, and nothing else of the run folder.

A proxy, probes and a steering vector are checked, and sealed again without the paths of this machine. Nothing is uploaded unless a
user asks for it (`--push_to_hub`, `frugalign push`). No torch until one of these is pushed.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from frugalign.base.cards import code_block, model_card, table, with_section, without_folders
from frugalign.base.errors import FrugalignError
from frugalign.base.files import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_RECORD_FILE,
    ADAPTER_WEIGHTS_FILE,
    CARD_FILE,
    MODEL_CONFIG_FILE,
    MODEL_RECORD_FILE,
    WEIGHTS_FILE,
    check_safetensors,
)
from frugalign.base.json_files import read_json
from frugalign.base.specs import is_attribute, load_attribute, local_path
from frugalign.base.wording import shown
from frugalign.runs.layout import evaluation_of, read_log, read_metrics, read_pairs_report

_log = logging.getLogger(__name__)
_TOKENIZER = (
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "vocab.*",
    "merges.txt",
)
_MODEL = (MODEL_CONFIG_FILE, "generation_config.json", "model*.safetensors", "model*.index.json", MODEL_RECORD_FILE)
_ADAPTER = (ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE, ADAPTER_RECORD_FILE)
_MEASURED = ("reward", "base_reward", "win_rate", "kl_per_sequence", "mean_length", "base_mean_length")
_LOGGED = ("eval_reward", "reward", "kl", "eval_loss", "loss", "rewards/accuracies")


@dataclass(frozen=True)
class Upload:
    """Where to: a repository, NAME or OWNER/NAME, created if it does not exist.

    Args:
        private: of a new repository. None: as the owner's settings say.
        token: None: the one of `hf auth login` or HF_TOKEN.
    """

    repository: str
    private: bool | None = None
    token: str | None = None
    revision: str | None = None

    @classmethod
    def of(cls, options: Any, folder: Path) -> Upload:
        """What the options `hub_model_id`, `hub_private_repo`, `hub_token` and `hub_revision` say. The folder's name is the default."""
        name = options.hub_model_id or folder.absolute().name
        optional = (getattr(options, f"hub_{each}", None) for each in ("private_repo", "token", "revision"))
        return cls(name, *optional)


@dataclass(frozen=True)
class _Kind:
    """A kind of artefact. `sealed`: the `package.module:attribute` of the ArtefactKind that loads and saves it. `usage`: from the
    repository and the base, how it is loaded."""

    name: str
    usage: Callable[[str, str], str]
    sealed: str | None = None
    files: tuple[str, ...] = ()


_KINDS: Mapping[str, _Kind] = {
    "frugalign_proxy": _Kind(
        "proxy",
        lambda repo, base: (
            f"from frugalign import GuidedModel\n\nmodel = GuidedModel.from_pretrained({repo!r}{_given(base)})"
        ),
        "frugalign.proxy.network:PROXY",
    ),
    "frugalign_representation_reward": _Kind(
        "representation reward",
        lambda repo, base: f"from frugalign.rewards import load_reward\n\nreward = load_reward({repo!r}).function",
        "frugalign.rewards.representation.network:PROBES",
    ),
    "frugalign_steering": _Kind(
        "steering vector",
        lambda repo, base: f"frugalign chat --model_name_or_path {base} --steering {repo}",
        "frugalign.policies.steering:STEERING",
    ),
    "adapter": _Kind(
        "adapter",
        lambda repo, base: f"frugalign chat --model_name_or_path {base} --adapter {repo}",
        files=(*_ADAPTER, *_TOKENIZER),
    ),
    "model": _Kind(
        "model",
        lambda repo, base: (
            f"from transformers import AutoModelForCausalLM\n\nmodel = AutoModelForCausalLM.from_pretrained({repo!r})"
        ),
        files=(*_MODEL, *_TOKENIZER),
    ),
}


def push_if_asked(folder: Path, options: Any) -> None:
    """Upload the artefact that a training has saved in `folder`, if its `push_to_hub` says so.

    Raises:
        FrugalignError: as `push`.
    """
    if options.push_to_hub:
        push(folder, Upload.of(options, folder))


def push(folder: Path, upload: Upload) -> str:
    """Upload the artefact in `folder`, and return its address.

    Raises:
        FrugalignError: the folder holds none, it is damaged, or the hub refuses.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    kind, api = _kind_of(folder), HfApi(token=upload.token)
    with tempfile.TemporaryDirectory() as staged:
        files, base = _files(kind, folder, Path(staged))
        try:
            found = api.create_repo(upload.repository, private=upload.private, exist_ok=True)
            repository = found.repo_id
            files[CARD_FILE] = _card(kind, folder, repository, base).encode()
            api.create_commit(
                repository,
                [CommitOperationAdd(name, content) for name, content in sorted(files.items())],
                commit_message=f"Upload the {kind.name}",
                revision=upload.revision,
            )
        except Exception as error:  # the hub's client, httpx and the system raise their own
            reason = " ".join(str(error).split()).replace(upload.token or "\0", "…") or type(error).__name__
            raise FrugalignError(
                f"The {kind.name} in {folder} is complete, but was not uploaded: {shown(reason, quoted=False, longest=300)}. "
                f"`frugalign push {folder}` tries again."
            ) from None
    address = f"{api.endpoint}/{repository}"
    _log.warning("The %s in %s is at %s now.", kind.name, folder, address)
    return address


def _kind_of(folder: Path) -> _Kind:
    if (folder / ADAPTER_WEIGHTS_FILE).is_file():
        return _KINDS["adapter"]
    kind = str(read_json(folder / MODEL_CONFIG_FILE).get("model_type") or "")
    if kind in _KINDS and kind not in ("adapter", "model"):
        return _KINDS[kind]
    if not kind or not any(folder.glob("model*.safetensors")):
        raise FrugalignError(
            f"{folder} holds no finished artefact: no proxy, representation reward, steering vector, adapter or model."
        )
    return _KINDS["model"]


def _files(kind: _Kind, folder: Path, staged: Path) -> tuple[dict[str, bytes | Path], str]:
    """The files to upload by name, and the base as it is named here."""
    if kind.sealed is not None:
        from frugalign.engines.artefacts import load_artefact

        network = load_artefact(load_attribute(kind.sealed), folder)
        config, base = network.config, str(network.config.base["name"])
        config.base, config.trained_on = _for_others(config.base), _for_others(config.trained_on)
        network.save_pretrained(staged)
        names = (MODEL_CONFIG_FILE, WEIGHTS_FILE)
        return {name: (staged / name).read_bytes() for name in names}, base
    paths = sorted({path for pattern in kind.files for path in folder.glob(pattern) if path.is_file()})
    files: dict[str, bytes | Path] = {path.name: path for path in paths}
    for path in paths:
        if path.suffix == ".safetensors":
            check_safetensors(path)
    base = ""
    if kind.name == "adapter":
        # Neither hash covers where the base lies.
        about, record = read_json(folder / ADAPTER_CONFIG_FILE), read_json(folder / ADAPTER_RECORD_FILE)
        base = str(about.get("base_model_name_or_path") or "BASE")
        files[ADAPTER_CONFIG_FILE] = _json(about | {"base_model_name_or_path": _short(base)})
        if record:
            files[ADAPTER_RECORD_FILE] = _json(record | {"base": _for_others(record.get("base"))})
    return files, base


def _for_others(about: dict[str, Any] | None) -> Any:
    """What an artefact says of its base or its data, with absolute paths shortened to their last part."""
    if about is None:
        return None
    shortened = {key: _short(about[key]) for key in ("name", "adapter") if isinstance(about.get(key), str)}
    return about | shortened | ({"relative": {}} if "relative" in about else {})


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()


def _short(name: str) -> str:
    return Path(name).name if os.path.isabs(name) else name


def _card(kind: _Kind, folder: Path, repository: str, base: str) -> str:
    """The artefact's card for others: with its figures, how it is loaded from the hub, and no path of this machine."""
    path = folder / CARD_FILE
    if path.is_file():
        card = path.read_text(encoding="utf-8", errors="replace")
    else:
        card = model_card(title=f"A {kind.name}", description=f"A {kind.name} for {base or 'a causal language model'}.")
    if figures := figures_of(folder):
        card = with_section(card, "Results", table(("measure", "value"), figures))
    card = with_section(card, "Use", code_block(kind.usage(repository, base)))
    return without_folders(card)


def figures_of(folder: Path) -> list[tuple[str, Any]]:
    """The figures of a card: of the evaluation and of held-out pairs where there are any, else the log's last values."""
    found: list[tuple[str, Any]] = []
    metrics = read_metrics(evaluation_of(folder))
    for name in _MEASURED:
        if (value := metrics.get(name)) is not None and value.get("mean") is not None:
            found.append((name, _estimate(value)))
    report = read_pairs_report(folder)
    if report is not None:
        found += [(f"held-out pairs in order, {name}", _estimate(value)) for name, value in report["accuracy"].items()]
    if not found:
        last: dict[str, Any] = {}
        for line in read_log(folder):
            last |= line
        found = [(f"{name} (last of the training)", last[name]) for name in _LOGGED if name in last]
    return found


def _estimate(value: Mapping[str, Any]) -> str:
    interval = f" [{value['ci_low']:.3g}, {value['ci_high']:.3g}]" if value.get("ci_low") is not None else ""
    return f"{value['mean']:.3g}{interval}" + (f", n = {value['n']}" if value.get("n") else "")


def _given(base: str) -> str:
    """The argument that names the base, which cannot be found by its name where it is a folder of this machine."""
    is_folder = local_path(base) is not None and not is_attribute(base)
    return f", base={_short(base)!r}" if is_folder else ""


class OnlyWhenFinished:
    """A mixin for a `transformers.Trainer`, which would upload the whole run folder, at every checkpoint."""

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Nothing: the repository is made when the artefact is uploaded."""

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Nothing: checkpoints stay here."""

    def push_to_hub(
        self,
        commit_message: str | None = None,
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Save what is trained in the run folder and upload it, as `push` does. Returns its address, None in other processes."""
        trainer: Any = self
        trainer.save_model(_internal_call=True)
        if not trainer.is_world_process_zero():
            return None
        folder = Path(str(trainer.args.output_dir))
        upload = Upload.of(trainer.args, folder)
        given: dict[str, Any] = {"token": token, "revision": revision, "private": private}
        return push(folder, replace(upload, **{name: value for name, value in given.items() if value is not None}))
