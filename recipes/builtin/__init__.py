"""The built-in model, from nothing: training conversations, tokenizer, weights, held-out score.

What lives here: the generator of the conversations (`facts`, `arithmetic`, `talk`, mixed by `conversations`),
the tokenizer, the model's shape and initial weights, the training run and the scorer. It uses coserve only
through `coserve.engine` and `coserve.training`; nothing in `src/coserve` may import it.

    python -m recipes.builtin --help
"""
