"""Fine-tuning as background work of an engine: data, LoRA, slices of the backward, the optimizer, checkpoints, jobs.

Nothing here knows of HTTP or databases; a job tells its story through a listener.
"""

from coserve.training.config import LoraConfig, TrainingConfig, lora_learning_rate
from coserve.training.data import Example, TrainSequence, read_examples
from coserve.training.jobs import JobEvent, JobSpec, TrainingJob
from coserve.training.run import train_model
from coserve.training.trainer import Trainer, TrainingEvent

__all__ = [
    "Example",
    "JobEvent",
    "JobSpec",
    "LoraConfig",
    "TrainSequence",
    "Trainer",
    "TrainingConfig",
    "TrainingEvent",
    "TrainingJob",
    "lora_learning_rate",
    "read_examples",
    "train_model",
]
