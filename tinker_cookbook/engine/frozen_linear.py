"""The product with a frozen weight, with the weight prepacked for decoding on a CPU.

oneDNN reorders a bf16 weight into its own layout in every call, which for the few rows of a
decoding step takes longer than the product. A second, prepacked copy avoids that and gives the same
bits. It is made when sampling first needs it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

# oneDNN's layout depends on the number of rows it is made for; this one serves fewer and more too
PREPACK_ROWS = 64


class FrozenLinear:
    """x W^T + b. With `prepack`, inference on a CPU uses a second copy of W.

    Training uses W itself.
    """

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor | None = None, prepack: bool = False
    ) -> None:
        self.weight, self.bias = weight, bias
        self._prepack = prepack and can_prepack(weight)
        self._prepacked: torch.Tensor | None = None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x [n, in] -> [n, out]."""
        if not (self._prepack and torch.is_inference_mode_enabled()):
            return F.linear(x, self.weight, self.bias)
        if self._prepacked is None:
            self._prepacked = torch.ops.mkldnn._reorder_linear_weight(
                self.weight.detach(), PREPACK_ROWS
            )
        return torch.ops.mkldnn._linear_pointwise(x, self._prepacked, self.bias, "none", [], "")


def can_prepack(weight: torch.Tensor) -> bool:
    """Whether this build and processor have bf16 kernels that use their own weight layout."""
    return weight.device.type == "cpu" and weight.dtype == torch.bfloat16 and has_bf16_products()


def has_bf16_products() -> bool:
    """Whether this build and processor multiply bf16 matrices without emulation (AVX-512, AMX)."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
