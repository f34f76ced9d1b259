"""`evaluate` with a loaded base, for tests of policies."""

from pathlib import Path
from typing import Any

from datasets import Dataset

from frugalign.engines.loading import LoadedModel
from frugalign.evaluation import EvaluationSettings, evaluate
from frugalign.policies import PolicySpec, load


def evaluated(
    base: LoadedModel, data: Dataset, reward: Any, *, output_dir: Path | None = None, **given: Any
) -> dict[str, Any]:
    """The metrics; `given`: fields of the policy and of the settings together."""
    own = EvaluationSettings.__dataclass_fields__
    settings = EvaluationSettings(**{name: value for name, value in given.items() if name in own})
    spec = PolicySpec.from_dict({name: value for name, value in given.items() if name not in own})
    return evaluate(load(spec, base=base), data, reward, settings, output_dir=output_dir)
