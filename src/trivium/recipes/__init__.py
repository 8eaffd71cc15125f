"""Recipes: one run per file, each a frozen `Config` and `main(config)`.

The only place where data, model, loss and training meet. `trivium train NAME` runs one.
"""

RECIPES: dict[str, str] = {  # name: the first line of the module's docstring, as a test checks
    "tokenizer": "Make a tokenizer from a text: byte-level BPE, beside published ones.",
    "ngram": "Count n-grams, and compare what smoothings make of the counts.",
    "word2vec": "Learn a vector for each word of a text, from the words it stands among.",
    "gpt": "Pre-train a causal Transformer from raw text; one dial, the depth, sets everything.",
    "domain": "Continue pre-training on a field or a language; what that gains and loses.",
    "finetune": "Fine-tune a model to classify texts; what it costs, what lowers the price.",
    "scaling": "Measure a scaling law: several sizes of model on several amounts of data, and a fit.",
}
