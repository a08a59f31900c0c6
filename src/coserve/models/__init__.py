"""A Hugging Face model directory, read into what the engine needs.

Here live the configuration, rotary frequencies, weight files, the tokenizer with its chat template,
incremental detokenization, the hub, and the decoder with its families. Nothing here knows of requests,
schedules, training jobs or HTTP, and nothing needs `transformers`, which is the oracle in the tests.
"""

from coserve.models.chat_template import ChatTemplate
from coserve.models.config import SUPPORTED_ARCHITECTURES, ModelConfig
from coserve.models.detokenizer import Detokenizer
from coserve.models.generation import GenerationConfig
from coserve.models.hub import resolve_model
from coserve.models.rope import rope_frequencies
from coserve.models.tokenizer import Tokenizer
from coserve.models.weights import load_weights

__all__ = [
    "SUPPORTED_ARCHITECTURES",
    "ChatTemplate",
    "Detokenizer",
    "GenerationConfig",
    "ModelConfig",
    "Tokenizer",
    "load_weights",
    "resolve_model",
    "rope_frequencies",
]
