"""The product with a frozen weight, for few rows as fast as for many.

oneDNN lays a bf16 weight out anew in every call; for the few rows of a decoding step that costs
more than the product. A second copy in that layout, made when sampling first needs it, gives the
same bits.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

ROWS = 64  # the layout depends on the rows it is made for; this one fits fewer and more as well


class FrozenLinear:
    """x W^T + b. With `pack`, inference on a CPU keeps a second copy of W."""

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor | None = None, pack: bool = False
    ) -> None:
        self.weight, self.bias = weight, bias
        self._pack = pack and packs(weight)
        self._packed: torch.Tensor | None = None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Rows [n, in] -> [n, out]."""
        if not (self._pack and torch.is_inference_mode_enabled()):
            return F.linear(x, self.weight, self.bias)
        if self._packed is None:
            self._packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.detach(), ROWS)
        return torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")


def packs(weight: torch.Tensor) -> bool:
    """Whether this build and processor have bf16 kernels with a layout of their own."""
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.bfloat16
        and torch.backends.mkldnn.is_available()
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )
