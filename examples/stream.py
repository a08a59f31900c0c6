"""Streams an answer of the built-in model, token by token: `python examples/stream.py [QUESTION]`."""

import sys

from coserve import Engine, SamplingParams

question = " ".join(sys.argv[1:]) or "How much memory bandwidth does the H100 have?"
with Engine.from_pretrained("builtin") as engine:
    for output in engine.chat([{"role": "user", "content": question}], SamplingParams(temperature=0)):
        print(output.text, end="", flush=True)
print()
