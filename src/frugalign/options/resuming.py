"""Which options may change when a run is resumed. No torch."""

from __future__ import annotations

START_OPTIONS = frozenset({"resume_from_checkpoint", "overwrite_output_dir", "from_round"})
"""Options about how a run is started. They are not settings of the run itself."""
_PLACES = {"model_name_or_path", "dataset_name", "reward", "reward_dataset_name", "output_dir"}
_MACHINE = {"dtype", "device_map", "use_cpu"}
_LENGTH = {"max_steps"}
_RECORDS = {"logging_steps", "eval_steps", "save_steps", "save_total_limit", "report_to"}
MAY_CHANGE = START_OPTIONS | _PLACES | _MACHINE | _LENGTH | _RECORDS
"""Options for paths, hardware, length and logging."""


def is_resuming(wanted: str | bool | None) -> bool:
    """Whether `resume_from_checkpoint` is a folder or `true`, rather than empty or `false`."""
    return str(wanted or "").lower() not in ("", "false", "none")
