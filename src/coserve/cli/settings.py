"""What a server is started with: options, else the environment, else the configuration file, else defaults.

Every value is checked here, so that a mistake costs no loading.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from coserve.cli.options import home_directory
from coserve.errors import InvalidRequest

WEIGHTS = ("auto", "bf16", "int8", "int4", "fp8")
DTYPES = ("auto", "bfloat16", "float32")
DEVICES = "auto, cpu or cuda (cuda:1 is the second GPU)"
LOG_LEVELS = ("debug", "info", "warning", "error")

Host = Annotated[str | None, typer.Option(help="Address to listen on (default 127.0.0.1).", metavar="ADDRESS")]
Port = Annotated[int | None, typer.Option(help="Port to listen on (default 8000; 0: any free one).")]
Device = Annotated[
    str | None,
    typer.Option(
        metavar="auto|cpu|cuda",
        help="What to run on (default auto: a GPU if there is one); cuda:1 is the second GPU. COSERVE_DEVICE.",
    ),
]
Dtype = Annotated[
    Literal["auto", "bfloat16", "float32"] | None,
    typer.Option(help="Number format to compute in (default auto: the checkpoint's, if the device computes in it)."),
]
Weights = Annotated[
    Literal["auto", "bf16", "int8", "int4", "fp8"] | None,
    typer.Option(help="Format of the matrices (default auto: the checkpoint's). Fewer bits, faster tokens. fp8: GPUs."),
]
Protect = Annotated[
    str | None,
    typer.Option(
        metavar="FACTOR|goals",
        help="How far training may slow tokens (default 1.10), or goals: up to the latency goals.",
    ),
]
Config = Annotated[Path | None, typer.Option(metavar="FILE", help="YAML file with any of these options.")]
Upstreams = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="YAML file of other servers behind this. COSERVE_UPSTREAMS, else upstreams.yaml in the home.",
    ),
]
Tiers = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="YAML file of the tiers. COSERVE_TIERS, else tiers.yaml in the home directory."),
]
Name = Annotated[str | None, typer.Option(help="Model name that clients use (default: the model's own).")]
LogLevel = Annotated[
    Literal["debug", "info", "warning", "error"] | None, typer.Option(help="How much to log (default info).")
]


@dataclass(frozen=True)
class ServeSettings:
    """Everything that `up` and `serve` take. Raises `InvalidRequest` for a value that cannot be."""

    model: str = "builtin"
    home: Path = field(default_factory=lambda: home_directory(None))
    host: str = "127.0.0.1"
    port: int = 8000
    device: str = "auto"
    dtype: str = "auto"
    weights: str = "auto"
    api_key: str | None = field(default=None, repr=False)
    protect: float | Literal["goals"] = 1.10
    name: str | None = None
    tiers: Path | None = None
    log_level: str = "info"
    upstreams: Path | None = None

    def __post_init__(self) -> None:
        _check("port", self.port, isinstance(self.port, int) and 0 <= self.port <= 65535, "between 0 and 65535")
        _check("dtype", self.dtype, self.dtype in DTYPES, f"one of {', '.join(DTYPES)}")
        _check("weights", self.weights, self.weights in WEIGHTS, f"one of {', '.join(WEIGHTS)}")
        _check("device", self.device, _is_device(self.device), DEVICES)
        if self.device == "cpu":  # of any other, only PyTorch knows what is there
            integers = self.weights in ("int8", "int4")
            fits = not (integers and self.dtype == "bfloat16")
            _check("dtype", self.dtype, fits, f"auto or float32 with --weights {self.weights} on a CPU")
            _check("weights", self.weights, self.weights != "fp8", "int8 or another one on a CPU")
        _check("log-level", self.log_level, self.log_level in LOG_LEVELS, f"one of {', '.join(LOG_LEVELS)}")
        _check(
            "protect",
            self.protect,
            self.protect == "goals" or (isinstance(self.protect, float) and 1 <= self.protect < float("inf")),
            "a factor of at least 1, or goals",
        )
        _check("tiers", self.tiers, self.tiers is None or isinstance(self.tiers, Path), "a file")
        for option in ("model", "host", "api_key", "name"):
            value = getattr(self, option)
            shown = value if option != "api_key" else "..."
            known = value is None if option in ("api_key", "name") else False
            _check(option.replace("_", "-"), shown, known or (isinstance(value, str) and value != ""), "a text")


def serve_settings(config: Path | None = None, **options: Any) -> ServeSettings:
    """Merge the four sources. Options that are None were not given."""
    given = {
        **_configuration(config),
        **_environment(),
        **{k: v for k, v in options.items() if v is not None},
    }
    if "home" in given or config is not None:
        given["home"] = home_directory(given.get("home"))
    for option in ("tiers", "upstreams"):
        if isinstance(given.get(option), str):
            given[option] = Path(given[option]).expanduser()
    if "protect" in given:
        given["protect"] = _protect(given["protect"])
    return ServeSettings(**given)


def _check(option: str, value: object, ok: bool, wanted: str) -> None:
    if not ok:
        raise InvalidRequest(f"--{option} is {value!r}; it must be {wanted}.", param=option)


def _is_device(value: object) -> bool:
    """Whether it is the name of one, there or not."""
    return isinstance(value, str) and bool(re.fullmatch(r"auto|cpu|cuda(:\d+)?", value))


def _environment() -> dict[str, Any]:
    names = {option: f"COSERVE_{option.upper()}" for option in ("home", "device", "api_key", "tiers", "upstreams")}
    return {option: os.environ[name] for option, name in names.items() if os.environ.get(name)}


def _configuration(path: Path | None) -> Mapping[str, Any]:
    if path is None:
        return {}
    import yaml

    try:
        said = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise InvalidRequest(f"Cannot read {path}: {error.strerror}.", param="config") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{path} is not YAML: {error}", param="config") from error
    if not isinstance(said, dict):
        raise InvalidRequest(f"{path} must hold options, such as `port: 8001`.", param="config")
    said = {str(key).replace("-", "_"): value for key, value in said.items()}
    known = [f.name for f in fields(ServeSettings)]
    for key in said:
        if key not in known:
            raise InvalidRequest(f"{path}: unknown option {key!r}; known are {', '.join(known)}.", param="config")
    return {key: value for key, value in said.items() if value is not None}


def _protect(value: object) -> object:
    """A factor as a number; anything else as it is, for the settings to refuse."""
    if value == "goals" or isinstance(value, bool):
        return value
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return value
