"""A frozen base that is spread over the processes of `torchrun`. transformers shards it while it loads (`DistributedConfig`).

Tensor parallel (`tp_size`): the processes of a group compute every layer together, so they must feed the same rows. A group is one
replica, and rows are split over replicas. Fully sharded (`fsdp_size`, FSDP2): every process feeds its own rows, and the weights of a
layer are gathered while it runs, so all processes must run the model equally often. `meet` sees to that: who arrives first runs the
model on a dummy token as long as others still work.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from typing import Any
from weakref import ref

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from frugalign.base.errors import FrugalignError

_NOT_WITH = {
    "device_map": "it places a model for one process",
    "use_cpu": "there are GPUs, over which the model would be spread",
    "load_in_4bit": "4-bit weights cannot be spread over processes",
    "adapter": "merge the adapter first (merge_and_unload)",
    "A GGUF file": "packed weights cannot be spread over processes",
}
_NOBODY = 1 << 30


@dataclass(frozen=True)
class Replica:
    """The rows of this process: those of replica `index` of `number`. One process of each replica `leads` and reports them."""

    index: int
    number: int
    leads: bool


@dataclass
class _State:
    """What the models of this process share: the size of a tensor-parallel group, and the models that run in step within `group`."""

    tp_size: int = 1
    in_step: list[ref[PreTrainedModel]] = field(default_factory=list)
    group: Any = None
    device: str = "cpu"
    serves: bool = False


_STATE = _State()


# -- loading ------------------------------------------------------------------------------------------------------------


def spread(config: PreTrainedConfig, tp_size: int, fsdp_size: int, **others: Any) -> dict[str, Any]:
    """The arguments of `from_pretrained` that spread a model with this config over the processes. Empty if both sizes are 1.

    Args:
        others: options of loading that may not be given as well, by name.

    Raises:
        FrugalignError: the model cannot be spread like this, or the processes do not fit.
    """
    sizes = {name: size for name, size in (("tp_size", tp_size), ("fsdp_size", fsdp_size)) if size != 1}
    if not sizes:
        return {}
    if len(sizes) > 1:
        raise FrugalignError("Give only one of tp_size and fsdp_size.")
    ((name, size),) = sizes.items()
    world = _world()
    if world == 1:
        raise FrugalignError(
            f"{name} {size} needs several processes: start the command with torchrun --nproc_per_node {size}."
        )
    if size < 1 or world % size:
        raise FrugalignError(f"{name} is {size}, which does not divide the {world} processes that were started.")
    for other, value in others.items():
        if value:
            raise FrugalignError(f"{other} and {name} cannot go together: {_NOT_WITH[other]}.")
    _check_plan(config.get_text_config(), name, size)
    if _STATE.tp_size not in (1, tp_size):
        raise FrugalignError(
            f"A model with tp_size {_STATE.tp_size} is loaded already, so tp_size cannot be {tp_size}."
        )
    from transformers.distributed.configuration_utils import DistributedConfig

    class Layout(DistributedConfig):
        """Groups of processes that hold a model each."""

        @property
        def dp_size(self) -> int:
            """1 for tensor parallelism: transformers would wrap its replicas in FSDP, which copies every weight at every pass."""
            return 1 if self.fsdp_size == 1 else world

    return {"distributed_config": Layout(tp_size=tp_size, fsdp_size=fsdp_size, dp_replicate_size=world // size)}


def _check_plan(config: Any, name: str, size: int) -> None:
    """Check that transformers has a plan for this architecture, and that the attention heads can be shared out."""
    if not getattr(config, f"base_model_{name.removesuffix('_size')}_plan", None):
        raise FrugalignError(
            f"transformers has no plan to spread a {config.model_type} model by {name}: use device_map."
        )
    if name != "tp_size":
        return
    for heads in ("num_attention_heads", "num_key_value_heads"):
        number = getattr(config, heads, None)
        if isinstance(number, int) and number % size:
            raise FrugalignError(
                f"tp_size is {size}, which does not divide the model's {number} {heads}: use fsdp_size."
            )


def _world() -> int:
    return dist.get_world_size() if dist.is_initialized() else int(os.environ.get("WORLD_SIZE", 1))


@torch.no_grad()
def adopt(model: PreTrainedModel) -> None:
    """Prepare a model that `spread` or the user has spread. All processes call it at once, and again without effect."""
    if getattr(model, "tp_size", None) not in (None, 1):
        _STATE.tp_size = int(model.tp_size)
    if not is_fully_sharded(model) or any(known() is model for known in _STATE.in_step):
        return
    if _STATE.group is None:
        shard: Any = next(value for value in model.parameters() if is_shard(value))
        dimension = next(place for place, each in enumerate(shard.placements) if each.is_shard())
        _STATE.group, _STATE.device = shard.device_mesh.get_group(dimension), shard.device.type
    number = len(_STATE.in_step)
    _STATE.in_step.append(ref(model))
    model.register_forward_pre_hook(lambda *_: _take_turn(number), prepend=True)
    # What stays gathered after a pass would look like another model: tied weights twice, and no shard where others have one.
    parts = [module for module in model.modules() if is_fully_sharded(module)]
    model.register_forward_hook(lambda *_: _free(parts))
    _run_dummy(model)  # FSDP sets itself up in the first pass, which must be of the whole model


def is_fully_sharded(model: nn.Module) -> bool:
    """Whether it runs under FSDP2, so that only the model as a whole can be called."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return fsdp is not None and isinstance(model, fsdp.FSDPModule)


def class_of(model: nn.Module) -> type[nn.Module]:
    """The class of a model, of which FSDP makes one of its own."""
    if not is_fully_sharded(model):
        return type(model)
    mixin = sys.modules["torch.distributed.fsdp"].FSDPModule
    own: type[nn.Module] = next(each for each in type(model).__mro__ if not issubclass(each, mixin))
    return own


def _free(parts: list[Any]) -> None:
    for part in parts:
        part.reshard()


# -- rows ---------------------------------------------------------------------------------------------------------------


def replica() -> Replica:
    """This process's share of the rows."""
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    return Replica(rank // _STATE.tp_size, world // _STATE.tp_size, rank % _STATE.tp_size == 0)


def is_first() -> bool:
    """Whether this is the process that prints."""
    mine = replica()
    return mine.index == 0 and mine.leads


def is_tensor_parallel() -> bool:
    """Whether this process holds a model together with others that feed the same rows."""
    return _STATE.tp_size > 1


# -- keeping step -------------------------------------------------------------------------------------------------------


def meet() -> None:
    """Wait until all processes are here. Meanwhile, run fully sharded models with those that still work.

    Called before every exchange between processes, so between two exchanges each may run the models as often as it needs.
    """
    if _STATE.in_step:
        _take_turn(_NOBODY)


def _take_turn(wanted: int) -> None:
    """Say which model this process wants to run, and run others' with them until it is this one's turn: the lowest number goes first."""
    if _STATE.serves:
        return
    while True:
        turn = torch.tensor(wanted, device=_STATE.device)
        dist.all_reduce(turn, dist.ReduceOp.MIN, _STATE.group)
        if int(turn) == wanted:
            return
        model = _STATE.in_step[int(turn)]()
        assert model is not None, "a model that another process runs was deleted here"
        _run_dummy(model)


@torch.no_grad()
def _run_dummy(model: PreTrainedModel) -> None:
    _STATE.serves = True
    try:
        model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=_STATE.device), use_cache=False)
    finally:
        _STATE.serves = False


# -- weights ------------------------------------------------------------------------------------------------------------


def is_shard(value: Any) -> bool:
    """Whether this process holds a part of the tensor."""
    tensor = sys.modules.get("torch.distributed.tensor")
    return tensor is not None and isinstance(value, tensor.DTensor)


def is_spread(model: nn.Module) -> bool:
    """Whether some of its weights are shards."""
    return any(map(is_shard, model.parameters()))


def gathered(value: Tensor) -> Tensor:
    """The whole tensor where this process has a shard of it. All processes of its group call it at once."""
    if not is_shard(value):
        return value
    meet()
    shard: Any = value.detach()
    whole: Tensor = shard.full_tensor()
    return whole


@dataclass(frozen=True)
class Share:
    """Every `number`-th piece of work that all processes could do, from `first`."""

    first: int
    number: int

    @classmethod
    def of_processes(cls) -> Share:
        return cls(dist.get_rank(), dist.get_world_size())

    def __contains__(self, place: int) -> bool:
        return place % self.number == self.first

    def together(self, mine: dict[int, Any]) -> dict[int, Any]:
        """What all processes found, by place."""
        meet()
        every: list[Any] = [None] * self.number
        dist.all_gather_object(every, mine)
        return {place: value for each in every for place, value in each.items()}


def at_hand(module: nn.Module, name: str, value: Tensor) -> Tensor:
    """A parameter or buffer of a module where accelerate has put it on the CPU or the disk until the module runs."""
    if value.is_meta:
        hook = getattr(module, "_hf_hook", None)
        for each in getattr(hook, "hooks", [hook]):
            stored = getattr(each, "weights_map", None)
            if stored is not None:
                found: Tensor = stored[name]
                return found
    return value


def runs_on(module: nn.Module, value: Tensor) -> torch.device:
    """The device on which a module with this weight computes, which is not where accelerate keeps an offloaded weight."""
    device = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
    return value.device if device is None else torch.device(device)
