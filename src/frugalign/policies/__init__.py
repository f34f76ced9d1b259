"""Policies: a base model with principles, proxies, an adapter, best-of-n or a guiding reward. Importing loads no torch."""

from typing import TYPE_CHECKING

from frugalign.base.specs import lazy_exports

if TYPE_CHECKING:
    from frugalign.policies.loading import load as load
    from frugalign.policies.policy import Policy as Policy
    from frugalign.policies.spec import PolicySpec as PolicySpec
    from frugalign.policies.spec import SamplingSettings as SamplingSettings

_HOME = {"Policy": "policy", "PolicySpec": "spec", "SamplingSettings": "spec", "load": "loading"}
__all__ = list(_HOME)


__getattr__ = lazy_exports(__name__, _HOME)
