"""`python -m tinker_cookbook.preference.train_dpo_cli`, the Tinker cookbook's spelling of
`python -m recipes.preference.dpo.train`."""

import runpy

if __name__ == "__main__":
    # by name: recipes are above this package, which must not import them
    runpy.run_module("recipes.preference.dpo.train", run_name="__main__", alter_sys=True)
