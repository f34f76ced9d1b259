"""TRL's configs, whose fields a study's line may set. A missing TRL is reported here."""

from frugalign.base.errors import FrugalignError

try:
    from trl import DPOConfig, GRPOConfig, KTOConfig, RLOOConfig, SFTConfig  # type: ignore[attr-defined]
except ModuleNotFoundError as error:
    raise FrugalignError(
        "The methods sft, kto, ipo, robust_dpo, rloo and grpo need TRL: pip install 'frugalign[peers]'."
    ) from error

__all__ = ["DPOConfig", "GRPOConfig", "KTOConfig", "RLOOConfig", "SFTConfig"]
