"""frugalign: align language models at a fraction of RLHF's cost.

Importing this package imports no torch; every public name is fetched when it is first used (PEP 562).
"""

from typing import TYPE_CHECKING

from frugalign.names import fetched_on_use

__version__ = "0.1.0"

if TYPE_CHECKING:
    from frugalign.errors import FrugalignError as FrugalignError
    from frugalign.evaluation import evaluate as evaluate
    from frugalign.ledger import Ledger as Ledger
    from frugalign.proxy.attachment import GuidedModel as GuidedModel
    from frugalign.proxy.config import ProxyConfig as ProxyConfig
    from frugalign.proxy.network import ProxyModel as ProxyModel
    from frugalign.proxy.trainer import ProxyTrainer as ProxyTrainer
    from frugalign.psle.config import PSLEConfig as PSLEConfig
    from frugalign.psle.trainer import PSLETrainer as PSLETrainer
    from frugalign.rerank.config import RerankConfig as RerankConfig
    from frugalign.rerank.trainer import RerankTrainer as RerankTrainer
    from frugalign.rewards.representation import RepresentationReward as RepresentationReward

_HOME = {
    "FrugalignError": "errors",
    "GuidedModel": "proxy",
    "Ledger": "ledger",
    "PSLEConfig": "psle",
    "PSLETrainer": "psle",
    "ProxyConfig": "proxy",
    "ProxyModel": "proxy",
    "ProxyTrainer": "proxy",
    "RepresentationReward": "rewards",
    "RerankConfig": "rerank",
    "RerankTrainer": "rerank",
    "evaluate": "evaluation",
}
__all__ = [*_HOME, "__version__"]


__getattr__ = fetched_on_use(__name__, _HOME)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
