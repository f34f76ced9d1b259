"""Try the parts of a training that its settings name, before any model is loaded. No torch until a config is checked."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

from frugalign.base.errors import FrugalignError
from frugalign.base.wording import shown

_NEVER_LISTED = ("azure_ml", "flyte")
"""Trackers that transformers may leave out of its list of those installed."""
_OPTIONS = {"deepspeed": "deepspeed", "use_liger_kernel": "liger_kernel"}
"""Options and the packages that they need."""
_OF_A_MODEL = {"apollo": "apollo_torch", "galore": "galore_torch", "lomo": "lomo_optim"}
"""Words in the names of optimisers that need the model itself, and their packages."""
_STEPS = 10
_LONGEST = 400


def try_training_parts(args: Any) -> None:
    """Make an optimiser for one weight, its schedule and a loader of one row, and look for trackers and the hub.

    Args:
        args: `TrainingArguments`. Of any other class, only the trackers are looked for.

    Raises:
        FrugalignError: a part that cannot be made.
    """
    check_trackers(getattr(args, "report_to", None) or ())
    from transformers import TrainingArguments

    if not isinstance(args, TrainingArguments):
        return
    if args.fp16 and args.device.type == "cpu":
        raise FrugalignError("fp16 needs a GPU. On a CPU, leave it out or use bf16.")
    if args.fsdp and args.parallel_mode.value != "distributed":
        raise FrugalignError("fsdp needs several processes; start them with accelerate launch.")
    for named, part in (
        (f"optim {_word(args.optim)}", _try_optimiser),
        (f"lr_scheduler_type {_word(args.lr_scheduler_type)}", _try_schedule),
        ("A data loader with these settings", _try_loader),
        ("torch_compile with these settings", _try_compile),
    ):
        try:
            part(args)
        except Exception as error:  # optimisers, schedules and loaders of other libraries raise any kind
            raise FrugalignError(f"{named} cannot be used: {_said(error)}.") from error
    if args.push_to_hub:
        check_hub(args.hub_token)


def check_packages(args: Any) -> None:
    """Check that the packages are installed which some options need.

    Raises:
        FrugalignError: one is not.
    """
    needed = [(option, package) for option, package in _OPTIONS.items() if getattr(args, option, None)]
    optimiser = _word(getattr(args, "optim", ""))
    needed += [(f"optim {optimiser}", package) for word, package in _OF_A_MODEL.items() if word in optimiser]
    for option, package in needed:
        if importlib.util.find_spec(package) is None:
            raise FrugalignError(f"{option} needs the package {package}, which is not installed.")


def _try_optimiser(args: Any) -> None:
    import torch
    from transformers import Trainer

    if any(word in _word(args.optim) for word in _OF_A_MODEL):
        return
    optimizer_class, arguments = Trainer.get_optimizer_cls_and_kwargs(args)
    optimizer_class([torch.nn.Parameter(torch.zeros(1))], **arguments)


def _try_schedule(args: Any) -> None:
    import torch
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=args.learning_rate)
    get_scheduler(
        args.lr_scheduler_type,
        optimizer=optimizer,
        num_warmup_steps=min(args.get_warmup_steps(_STEPS), _STEPS),
        num_training_steps=_STEPS,
        scheduler_specific_kwargs=args.lr_scheduler_kwargs,
    )


def _try_loader(args: Any) -> None:
    from torch.utils.data import DataLoader

    rows: Any = [0]
    DataLoader(
        rows,
        num_workers=args.dataloader_num_workers,
        prefetch_factor=args.dataloader_prefetch_factor,
        persistent_workers=args.dataloader_persistent_workers,
        multiprocessing_context=args.dataloader_multiprocessing_context,
    )


def _try_compile(args: Any) -> None:
    from accelerate.utils import TorchDynamoPlugin

    if args.torch_compile:  # a backend or a mode implies it
        TorchDynamoPlugin(backend=args.torch_compile_backend, mode=args.torch_compile_mode or "default")


def check_hub(token: str | None = None) -> None:
    """Ask the hub whose token it is. A run must not fail after hours, when it is pushed.

    Raises:
        FrugalignError: the hub cannot be reached, or does not take the token.
    """
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE:
        raise FrugalignError("push_to_hub needs the hub, and HF_HUB_OFFLINE is set.")
    try:
        HfApi().whoami(token=token)
    except Exception as error:  # no token, a refused one, no connection
        reason = str(error).replace(token or "\0", "…")
        raise FrugalignError(
            f"push_to_hub cannot sign in at the hub: {shown(reason, quoted=False)}. Try `hf auth login`."
        ) from None


def check_trackers(report_to: str | Sequence[str]) -> None:
    """Check the names of experiment trackers.

    Raises:
        FrugalignError: one is unknown, or not installed.
    """
    names = [report_to] if isinstance(report_to, str) else report_to
    names = [name for name in names if name not in ("none", "all")]
    if not names:
        return
    from transformers.integrations import integration_utils as trackers

    known = list(trackers.INTEGRATION_TO_CALLBACK)
    installed = {*trackers.get_available_reporting_integrations(), *_NEVER_LISTED}
    for name in names:
        if name not in known:
            raise FrugalignError(
                f"report_to names {shown(name)}, which transformers does not know; it knows {', '.join(known)}."
            )
        if name not in installed:
            raise FrugalignError(f"report_to names {name}, which is not installed.")


def refused_settings(error: Exception) -> FrugalignError:
    """The error of transformers or TRL about the settings, as one user error."""
    if isinstance(error, FrugalignError):
        return error
    return FrugalignError(f"These settings do not fit: {_said(error)}.")


def _said(error: Exception) -> str:
    said = " ".join(str(error).split()).rstrip(".")
    if not isinstance(error, (ValueError, ImportError)):
        said = f"{type(error).__name__}: {said}"
    return said if len(said) <= _LONGEST else f"{said[:_LONGEST]}…"


def _word(value: Any) -> str:
    """The text of a word that transformers may have made an enumeration of."""
    return str(getattr(value, "value", value))
