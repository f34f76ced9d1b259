"""Which options may change when a run is resumed. No torch."""

from __future__ import annotations

from frugalign.options.cluster import RAY_OPTIONS

START_OPTIONS = frozenset({"resume_from_checkpoint", "overwrite_output_dir", "from_round"})
"""Options about how a run is started. They are not settings of the run itself."""
_PLACES = {"model_name_or_path", "dataset_name", "reward", "reward_dataset_name", "output_dir"}
_MACHINE = {"dtype", "device_map", "use_cpu", "fsdp_size", *RAY_OPTIONS}
_LENGTH = {"max_steps"}
_RECORDS = {"logging_steps", "eval_steps", "save_steps", "save_total_limit", "report_to", "log_completions"}
_RECORDS |= {"push_to_hub", "hub_model_id", "hub_private_repo"}
MAY_CHANGE = START_OPTIONS | _PLACES | _MACHINE | _LENGTH | _RECORDS
"""Options for paths, hardware, length and logging."""

OF_TRAINING = (
    *("optim", "optim_args", "optim_target_modules", "learning_rate", "weight_decay", "max_grad_norm"),
    *("adam_beta1", "adam_beta2", "adam_epsilon", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "average_tokens_across_devices"),
    *("train_sampling_strategy", "dataloader_drop_last", "ignore_data_skip", "seed", "data_seed"),
    *("bf16", "fp16", "neftune_noise_alpha", "use_liger_kernel", "disable_dropout", "world_size"),
)
"""Options of transformers, and the number of processes, that change what is learned. They may not change on resuming."""


def is_resuming(wanted: str | bool | None) -> bool:
    """Whether `resume_from_checkpoint` is a folder or `true`, rather than empty or `false`."""
    return str(wanted or "").lower() not in ("", "false", "none")
