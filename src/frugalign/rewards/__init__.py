"""Rewards: the two protocols, loading from a string, and validated scoring. Importing this package imports no torch."""

from typing import TYPE_CHECKING

from frugalign.base.specs import lazy_exports

if TYPE_CHECKING:
    from frugalign.rewards.classifier import ClassifierReward as ClassifierReward
    from frugalign.rewards.loading import NamedReward as NamedReward
    from frugalign.rewards.loading import RewardSpec as RewardSpec
    from frugalign.rewards.loading import load_reward as load_reward
    from frugalign.rewards.loading import load_rewards as load_rewards
    from frugalign.rewards.protocols import Reward as Reward
    from frugalign.rewards.protocols import StateReward as StateReward
    from frugalign.rewards.representation.network import RepresentationReward as RepresentationReward
    from frugalign.rewards.scoring import CompletionBatch as CompletionBatch
    from frugalign.rewards.scoring import Scores as Scores
    from frugalign.rewards.scoring import TrainerHooks as TrainerHooks
    from frugalign.rewards.scoring import score as score

_HOME = {
    "ClassifierReward": "classifier",
    "CompletionBatch": "scoring",
    "NamedReward": "loading",
    "RepresentationReward": "representation.network",
    "Reward": "protocols",
    "RewardSpec": "loading",
    "Scores": "scoring",
    "StateReward": "protocols",
    "TrainerHooks": "scoring",
    "load_reward": "loading",
    "load_rewards": "loading",
    "score": "scoring",
}
__all__ = list(_HOME)


__getattr__ = lazy_exports(__name__, _HOME)
