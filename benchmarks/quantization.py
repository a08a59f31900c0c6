"""What quantised weights cost in accuracy: next-token distributions and perplexity against bfloat16's.

Each format reads the same conversations, which the built-in model was not trained on, and says of every place of their
answers which token comes next.

    KL = mean over the places of sum over tokens of p log(p / q), in nats, with p bfloat16's and q the format's
    same = the share of places where both find the same token the likeliest
    perplexity = exp(mean over the places of -log of the probability of the token that comes)

Random weights have nothing to say of a text: their perplexity only tells that it stays so.
"""

from __future__ import annotations

if not __package__:  # run as a file
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.machine import describe_machine, machine_line
from benchmarks.models import SMOLLM2_135M, find_models
from benchmarks.options import benchmark_parser
from benchmarks.report import Row, print_table, progress, write_json
from coserve.engine.batch import Batch
from coserve.engine.blocks import blocks_for
from coserve.engine.segment import Segment
from coserve.models.decoder import Decoder
from coserve.models.tokenizer import Tokenizer
from recipes.builtin.conversations import held_out_conversations

FORMATS = ("bf16", "int8", "int4")
_LONGEST = 256  # tokens of a text


@dataclass(frozen=True)
class Text:
    tokens: list[int]
    first: int  # token of the answer


def texts(tokenizer: Tokenizer, count: int, seed: int) -> Iterator[Text]:
    """Conversations as the model's chat template has them; plain, if it has none."""
    for conversation in held_out_conversations(count, seed):
        *asked, answer = (dict(message) for message in conversation.messages)
        if tokenizer.has_chat_template:
            prompt = tokenizer.apply_chat_template(asked)
            whole = tokenizer.apply_chat_template([*asked, answer], add_generation_prompt=False)
        else:
            prompt = tokenizer.encode("\n".join(message["content"] for message in asked) + "\n")
            whole = [*prompt, *tokenizer.encode(answer["content"])]
        if len(prompt) < len(whole) <= _LONGEST:
            yield Text(whole, len(prompt))


def log_probabilities(decoder: Decoder, text: Text) -> Tensor:
    """[tokens of the answer, vocabulary]: what each of them might have been."""
    blocks = range(blocks_for(len(text.tokens)))
    batch = Batch.of([Segment("prefill", text.tokens, 0, blocks)])
    with torch.inference_mode():
        hidden = decoder.forward(batch.token_ids, batch.layout, decoder.new_cache(len(blocks)))
        return decoder.logits(hidden[text.first - 1 : -1]).float().log_softmax(-1)


def measure(path: Path, count: int, seed: int = 0) -> list[Row]:
    """A row for each format."""
    said = list(texts(Tokenizer.from_directory(path), count, seed))
    rows: list[Row] = []
    wanted: list[Tensor] = []
    for weights in FORMATS:
        decoder = Decoder.from_directory(path, dtype=torch.float32, weights=weights, max_positions=_LONGEST)
        found = [log_probabilities(decoder, text) for text in said]
        wanted = wanted or found
        megabytes = decoder.cost.forward(1, 0, 0, 1).bytes / 1e6
        rows.append({"weights": weights, "mb": megabytes, **_compared(found, wanted, said)})
    return rows


def _compared(found: Sequence[Tensor], wanted: Sequence[Tensor], said: Sequence[Text]) -> Row:
    q, p = torch.cat(list(found)), torch.cat(list(wanted))
    came = torch.tensor([token for text in said for token in text.tokens[text.first :]])
    return {
        "places": len(came),
        "kl": float(F.kl_div(q, p, log_target=True, reduction="sum")) / len(came),
        "same": float((q.argmax(-1) == p.argmax(-1)).float().mean()),
        "perplexity": float(F.nll_loss(q, came).exp()),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    options = benchmark_parser("quantization", __doc__.split("\n")[0], ("builtin", SMOLLM2_135M)).parse_args(arguments)
    machine = describe_machine()
    progress(machine_line(machine))
    rows: list[Row] = []
    for model in find_models(options.model):
        progress(f"{model.name}: {', '.join(FORMATS)}")
        measured = measure(model.path, 5 if options.quick else 100, options.seed)
        rows += [{"model": model.name, **row} for row in measured]
    print(f"\n{machine_line(machine)}\n")
    print_table(rows)
    if options.json:
        write_json(options.json, machine, rows)


if __name__ == "__main__":
    main()
