"""What Inspect's command line finds: the model API `tinker-cookbook`, and our tasks.

The entry point `inspect_ai` in pyproject.toml names this module. The tasks are known to Inspect as
`tinker_cookbook/NAME`.
"""

from tinker_cookbook.eval import tasks
from tinker_cookbook.eval.inspect_model import InspectAPIFromTinkerSampling

__all__ = ["LOCAL_TASKS", "InspectAPIFromTinkerSampling"]

LOCAL_TASKS = [tasks.load(name) for name in tasks.LOCAL]
