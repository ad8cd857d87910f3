"""Weights, gradients and optimiser state sharded over GPUs (FSDP2), for shapes that one GPU cannot hold."""

from __future__ import annotations

from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

from vcell.model.predictor import blocks_of


class FullySharded(ModelParallelStrategy):
    """Every rank holds a share of each layer and draws its own sets. Checkpoints are the same single files as elsewhere."""

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()


def shard(model: nn.Module, mesh: DeviceMesh) -> None:
    """Shards a model in place: block by block, gathered as each is needed; then what is left."""
    for block in blocks_of(model):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
