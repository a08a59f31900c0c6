"""What an operator can set for the service: environment variables first, defaults else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

MIB = 1 << 20


class Settings(BaseSettings):
    """Where state lives, where to listen, and how much a client may send.

    Every field can be set by the environment variable `COSERVE_<NAME>`; arguments win over the environment.
    """

    model_config = SettingsConfigDict(env_prefix="COSERVE_", extra="ignore")

    home: Path = Path("~/.coserve")
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)  # 0: any free one
    api_key: str | None = Field(default=None, repr=False)  # None: those in the database, one made at first start
    database_url: str | None = Field(default=None, repr=False)  # None: SQLite in `home`
    limits_url: str | None = Field(default=None, repr=False)  # None: this process's memory; redis:// or postgresql://
    upstreams: Path | None = None  # the file that says which; None: `home`/upstreams.yaml, if it is there
    max_body_bytes: int = Field(default=16 * MIB, gt=0)  # of a JSON body
    max_file_bytes: int = Field(default=512 * MIB, gt=0)  # of an uploaded file
    max_choices: int = Field(default=256, gt=0)  # completions that one HTTP request may ask for
    drain_seconds: float = Field(default=8.0, ge=0)  # how long running replies may still take at shutdown

    @field_validator("api_key", "database_url", "limits_url")
    @classmethod
    def _nothing_is_none(cls, value: str | None) -> str | None:
        return (value or "").strip() or None  # an empty variable of the environment sets nothing

    @field_validator("upstreams", mode="before")
    @classmethod
    def _no_path_is_none(cls, value: Any) -> Any:
        return value or None

    @property
    def directory(self) -> Path:
        return self.home.expanduser().resolve()

    @property
    def files_directory(self) -> Path:
        return self.directory / "files"

    @property
    def jobs_directory(self) -> Path:
        return self.directory / "jobs"

    def make_directories(self) -> None:
        """Create `home` and its folders, readable by their owner only."""
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        for folder in (self.files_directory, self.jobs_directory):
            folder.mkdir(exist_ok=True, mode=0o700)
