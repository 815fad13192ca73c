"""The official path of our Inspect model."""

from tinker_cookbook.eval.inspect_model import InspectAPIFromTinkerSampling

__all__ = ["InspectAPIFromTinkerSampling"]
