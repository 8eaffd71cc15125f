"""Recipes: one run per file, each a frozen `Config` and `main(config)`.

The only place where data, model, loss and training meet. `trivium train NAME` runs one.
"""

RECIPES: dict[str, str] = {  # name: the first line of the module's docstring, as a test checks
    "gpt": "Pre-train a causal Transformer from raw text; one dial, the depth, sets everything.",
}
