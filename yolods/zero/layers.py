"""Divides a model's parameters among the ranks layer by layer, before the next layer has memory."""

from __future__ import annotations

from typing import Any

from torch import nn


class LayerPartition:
    """Partitions layers for ZeRO-3, with the numbers that `deepspeed.initialize` would give.

    DeepSpeed broadcasts rank 0's values first, although all ranks have computed or read the same
    ones. That is one pass over the model at the start of a run, and makes sure that ranks start
    alike also where hosts with other processors round otherwise or hold another file.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        """
        Args:
            settings: those of `deepspeed.initialize`.
        """
        self._settings = settings
        self._divided: nn.Parameter | None = None

    def divide(self, layer: nn.Module) -> None:
        """Keep this rank's part of the parameters that a layer holds itself. A collective.

        Source: deepspeed/runtime/zero/parameter_offload.py, `_convert_to_zero_parameters` (0.19.8).

        Args:
            layer: without submodules that have parameters; in the dtype of training, on any device.
        """
        from deepspeed.runtime.zero import Init
        from deepspeed.utils import groups

        parameters = list(layer.parameters(recurse=False))
        if not parameters:
            return
        if self._divided is not None:
            self._divided.convert_to_zero_parameters(param_list=parameters)
            return
        Init(
            module=layer,
            config_dict_or_path=self._settings,
            dtype=parameters[0].dtype,
            zero_param_parallel_group=groups._get_zero_param_intra_parallel_group(),
        )
        self._divided = parameters[0]
