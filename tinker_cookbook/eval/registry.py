"""What Inspect's command line finds: the model API `tinker-cookbook`, and our tasks.

The entry point `inspect_ai` in pyproject.toml names this module. The tasks are known to Inspect as
`tinker_cookbook/NAME`.
"""

from inspect_ai._util.registry import registry_add, registry_info

from tinker_cookbook.eval import tasks
from tinker_cookbook.eval.inspect_model import InspectAPIFromTinkerSampling

__all__ = ["InspectAPIFromTinkerSampling"]


def _register(name: str) -> None:
    """Under its full name in a checkout, too, where Inspect does not see an installed package."""
    function, full = tasks.load(name), f"tinker_cookbook/{name}"
    info = registry_info(function)
    if info.name != full:
        registry_add(function, info.model_copy(update={"name": full}))


for _name in tasks.LOCAL:
    _register(_name)
