"""What `transformers` and `peft` do with the same weights, in a process of its own: a hang there ends with it.

`tasks`, in order: `agreement` scores a text by the whole model at once; `continuous` answers requests with
`generate_batch`; `compiled` decodes with a static cache and a compiled forward, by number of streams; `peft` is the
training loop of `benchmarks.training`. Each reports its figures, or its error, and the next one goes on.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.model import full_name, random_tensor, shapes
from benchmarks.processes import report, task_of_parent
from benchmarks.training import PeftLoop
from benchmarks.training_load import TrainingShape
from coserve.models.config import ModelConfig

Figures = dict[str, Any]
_WARM = 4  # steps after which a compiled one has been recorded


def main() -> None:
    told = task_of_parent()
    model = random_transformer(told["config"], told["device"], getattr(torch, told["dtype"]))
    report(task="loaded")
    for task in told["tasks"]:
        try:
            report(task=task["name"], **_TASKS[task["name"]](model, task))
        except Exception as error:
            report(task=task["name"], error=f"{type(error).__name__}: {error}".split("\n")[0])
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def random_transformer(config: Mapping[str, Any], device: str, dtype: torch.dtype) -> Any:
    """A LlamaForCausalLM of the weights that `model.random_decoder` has."""
    import transformers

    kept = {name: value for name, value in config.items() if name not in ("architectures", "model_type")}
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**kept))
    known, place = shapes(ModelConfig.from_dict(config)), torch.device(device)
    named = {full_name(name): random_tensor(name, shape, place).to(dtype) for name, shape in known.items()}
    model.load_state_dict(named, assign=True)
    rotary = model.model.rotary_emb  # its frequencies are in no checkpoint
    model.model.rotary_emb = type(rotary)(model.config).to(device)
    model.config.dtype = dtype
    model.generation_config = transformers.GenerationConfig(pad_token_id=0, eos_token_id=-1, do_sample=False)
    return model.eval().requires_grad_(False)


@torch.no_grad()
def agreement(model: Any, task: Figures) -> Figures:
    """`tokens`, of which the last `answer` are scored -> their log-probabilities."""
    ids = torch.tensor([task["tokens"]], device=model.device)
    logits = model(ids, logits_to_keep=task["answer"] + 1).logits[0, :-1].float()
    scores = logits.log_softmax(-1).gather(1, ids[0, -task["answer"] :, None])
    return {"logprobs": scores.flatten().tolist()}


@torch.no_grad()
def compiled(model: Any, task: Figures) -> Figures:
    """`streams` of `prompt` tokens -> tokens/s of `steps` greedy steps of a compiled forward with a static cache."""
    from transformers import StaticCache

    streams, prompt, steps = task["streams"], task["prompt"], task["steps"]
    torch._dynamo.reset()
    cache = StaticCache(config=model.config, max_cache_len=prompt + _WARM + steps)

    def decode(token: Tensor, position: Tensor) -> Tensor:
        out = model(token, position_ids=position, past_key_values=cache, use_cache=True)
        return out.logits[:, -1:].argmax(-1)

    on_gpu = model.device.type != "cpu"
    how: Figures = {"mode": "reduce-overhead"} if on_gpu else {"backend": "aot_eager"}  # it only has to run there
    fast = torch.compile(decode, fullgraph=True, dynamic=False, **how)
    ids = torch.randint(16, model.config.vocab_size, (streams, prompt), device=model.device)
    token = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits.argmax(-1)
    position = torch.full((streams, 1), prompt, device=model.device)

    def several(number: int) -> float:
        """Seconds of so many steps."""
        nonlocal token
        begun = time.perf_counter()
        for _ in range(number):
            if on_gpu:
                torch.compiler.cudagraph_mark_step_begin()
            token = fast(token, position).clone()
            position.add_(1)
        token.tolist()
        return time.perf_counter() - begun

    compiling = several(_WARM)
    return {"streams": streams, "tokens_per_s": streams * steps / several(steps), "compile_seconds": compiling}


@torch.no_grad()
def continuous(model: Any, task: Figures) -> Figures:
    """`requests` of `prompt` tokens -> tokens/s of answers of `output` tokens by continuous batching, end to end."""
    from transformers import ContinuousBatchingConfig, GenerationConfig

    requests, output = task["requests"], task["output"]
    room: Figures = {"num_blocks": 8, "max_batch_tokens": 64} if model.device.type == "cpu" else {}
    config = ContinuousBatchingConfig(max_memory_percent=0.5, **room)

    def seconds(output: int) -> float:
        how = GenerationConfig(max_new_tokens=output, eos_token_id=-1, pad_token_id=0, do_sample=False)
        prompts = torch.randint(16, model.config.vocab_size, (requests, task["prompt"])).tolist()
        begun = time.perf_counter()
        answers = model.generate_batch(prompts, how, config, persistent_manager=True)
        took = time.perf_counter() - begun
        made = sum(len(answer.generated_tokens) for answer in answers.values())
        if made != output * requests:
            raise RuntimeError(f"{made} tokens came, where {output * requests} were asked for")
        return took

    try:
        seconds(task["warm"])  # makes the manager and its graphs, which are kept
        took = min(seconds(output) for _ in range(task["rounds"]))
    finally:
        model.destroy_cached_continuous_batching_manager()
    return {"tokens_per_s": requests * output / took}


def peft(model: Any, task: Figures) -> Figures:
    """`steps` optimizer steps on the data of `seed` -> when each ended, and its loss."""
    shape = TrainingShape(task["sequences"], task["tokens"])
    loop = PeftLoop(model, shape, checkpointing=True)
    run = loop.train(shape.data(model.config.vocab_size, task["seed"], batches=task["steps"] + 1), task["steps"] + 1)
    return {"ends": run.ends, "losses": run.losses}


_TASKS: dict[str, Callable[[Any, Figures], Figures]] = {
    "agreement": agreement,
    "compiled": compiled,
    "continuous": continuous,
    "peft": peft,
}


if __name__ == "__main__":
    main()
