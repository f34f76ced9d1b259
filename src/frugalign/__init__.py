"""frugalign: align language models at a fraction of RLHF's cost.

Importing this package imports no torch; every public name is fetched when it is first used (PEP 562).
"""

from typing import TYPE_CHECKING

from frugalign.base.specs import lazy_exports

__version__ = "0.1.0"

if TYPE_CHECKING:
    from frugalign.base.errors import FrugalignError as FrugalignError
    from frugalign.base.ledger import Ledger as Ledger
    from frugalign.evaluation import evaluate as evaluate
    from frugalign.methods.proxy_rlhf.config import ProxyConfig as ProxyConfig
    from frugalign.methods.proxy_rlhf.trainer import ProxyTrainer as ProxyTrainer
    from frugalign.methods.proxy_stored.config import StoredProxyConfig as StoredProxyConfig
    from frugalign.methods.proxy_stored.trainer import StoredProxyTrainer as StoredProxyTrainer
    from frugalign.methods.psle.config import PSLEConfig as PSLEConfig
    from frugalign.methods.psle.trainer import PSLETrainer as PSLETrainer
    from frugalign.methods.rerank.config import RerankConfig as RerankConfig
    from frugalign.methods.rerank.trainer import RerankTrainer as RerankTrainer
    from frugalign.proxy.attachment import GuidedModel as GuidedModel
    from frugalign.proxy.network import ProxyModel as ProxyModel
    from frugalign.rewards.representation.network import RepresentationReward as RepresentationReward

_HOME = {
    "FrugalignError": "base.errors",
    "GuidedModel": "proxy",
    "Ledger": "base.ledger",
    "PSLEConfig": "methods.psle",
    "PSLETrainer": "methods.psle",
    "ProxyConfig": "methods.proxy_rlhf",
    "ProxyModel": "proxy",
    "ProxyTrainer": "methods.proxy_rlhf",
    "RepresentationReward": "rewards",
    "RerankConfig": "methods.rerank",
    "RerankTrainer": "methods.rerank",
    "StoredProxyConfig": "methods.proxy_stored",
    "StoredProxyTrainer": "methods.proxy_stored",
    "evaluate": "evaluation",
}
__all__ = [*_HOME, "__version__"]


__getattr__ = lazy_exports(__name__, _HOME)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
