"""Recipes: one run per file, each a frozen `Config` and `main(config)`.

The only place where data, model, loss and training meet. `trivium train NAME` runs one.
"""

RECIPES: dict[str, str] = {  # name: the first line of the module's docstring, as a test checks
    "tokenizer": "Make a tokenizer from a text: byte-level BPE, beside published ones.",
    "ngram": "Count n-grams, and compare what smoothings make of the counts.",
    "word2vec": "Learn a vector for each word of a text, from the words it stands among.",
    "rnn": "Train a recurrent network (Elman 1990) on text: h_t = tanh(U x_t + V h_{t−1} + b).",
    "lstm": "Train an LSTM (Hochreiter & Schmidhuber 1997) on text: gates decide what it keeps.",
    "lstm-attention": "Train an LSTM that looks back at its states (Luong et al. 2015) on text.",
    "elmo": "Train ELMo (Peters et al. 2018) on text: one LSTM reads forwards and one backwards.",
    "bert": "Train a BERT (Devlin et al. 2018) on text: guess hidden words, from both sides.",
    "xlnet": "Train an XLNet (Yang et al. 2019) on text: predict tokens in any order.",
    "gpt": "Pre-train a causal Transformer from raw text; one dial, the depth, sets everything.",
    "domain": "Continue pre-training on a field or a language; what that gains and loses.",
    "finetune": "Fine-tune a model to classify texts; what it costs, what lowers the price.",
    "sft": "Teach a language model to answer: supervised fine-tuning on conversations.",
    "reward": "Train a reward model on rankings: what people prefer becomes a number.",
    "ppo": "Learn from rewards by proximal policy optimisation, the algorithm of RLHF.",
    "grpo": "Learn from rewards by comparing answers: group-relative policy optimisation.",
    "dpo": "Learn from rankings without a reward model: direct preference optimisation.",
    "scaling": "Measure a scaling law: models of several sizes, amounts of data, and a fit.",
    "tool-use": "Teach the default model to use its tools, from conversations made on the spot.",
}
