"""What of a run may change when it is resumed. No torch."""

from __future__ import annotations

START_OPTIONS = frozenset({"resume_from_checkpoint", "overwrite_output_dir", "from_round"})
"""How a run is started: no part of the run itself."""
_PLACES = {"model_name_or_path", "dataset_name", "reward", "reward_dataset_name", "output_dir"}
_MACHINE = {"dtype", "device_map", "use_cpu"}
_LENGTH = {"max_steps"}
_RECORDS = {"logging_steps", "eval_steps", "save_steps", "save_total_limit", "report_to"}
MAY_CHANGE = START_OPTIONS | _PLACES | _MACHINE | _LENGTH | _RECORDS
"""Where a run's parts lie and what they run on, how long it is, and what is written about it."""


def is_resuming(wanted: str | bool | None) -> bool:
    """What `resume_from_checkpoint` says: a folder or `true`, and not nothing or `false`."""
    return str(wanted or "").lower() not in ("", "false", "none")
