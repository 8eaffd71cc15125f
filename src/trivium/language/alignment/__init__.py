"""From a language model to an assistant that people prefer: rewards and what raises them.

    places        features of the tokens that count, without padding
    logprobs      log-probabilities of given tokens, without the logits of a batch
    preferences   from ranked replies: Bradley–Terry, Plackett–Luce; DPO and IPO
    reward        the reward model, and whether its probabilities are right
    reference     the model that a policy is held near to
    advantages    how much better a token, or an answer, was than expected
    policy        the clipped losses of PPO and GRPO, and estimates of the KL divergence
    rollouts      answers of the current weights, as batches to train on
    verifiable    rewards that a program can tell

Functions of tensors are pure. In their docstrings: R rows (replies), T tokens of a row, N tokens of
all replies, C width, V vocabulary.
"""
