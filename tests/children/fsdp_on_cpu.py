"""The recipe script under FSDP2 on CPUs, over gloo.

accelerate shards on GPUs and the like, and makes plain DDP of the same settings on CPUs, without a word. The class of
device is the only thing told otherwise here; plugin, wrapping, sharding and saving are accelerate's and torch's own.
"""

from accelerate.state import AcceleratorState, DistributedType, PartialState

_init = AcceleratorState.__init__


def _init_as_on_gpus(self, *args, **kwargs):
    shared = PartialState._shared_state
    if shared.get("distributed_type") == DistributedType.MULTI_CPU:
        shared["distributed_type"] = DistributedType.MULTI_GPU
    _init(self, *args, **kwargs)


AcceleratorState.__init__ = _init_as_on_gpus

if __name__ == "__main__":
    from torch.distributed.tensor import DTensor

    from qwen_grafts.recipes.graft_sft import run

    trainer = run()
    sharded = sum(isinstance(parameter, DTensor) for parameter in trainer.model.parameters())
    print(f"SHARDED {sharded} of {sum(1 for _ in trainer.model.parameters())}", flush=True)
