"""What an operator can set for the service: environment variables first, defaults else."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from coserve.service.money import nano

MIB = 1 << 20
DATABASE = "coserve.db"
"""The file in `home`, unless `database_url` names another place."""


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
    oidc_issuer: str | None = None  # whose tokens open the administration; None: no one's
    oidc_audience: str | None = None
    oidc_admins: Annotated[tuple[str, ...], NoDecode] = ()  # subjects, e-mail addresses, claim=value
    tiers: Path | None = None  # None: tiers.yaml in `home`, else coserve's own
    upstreams: Path | None = None  # the file that says which; None: `home`/upstreams.yaml, if it is there
    max_body_bytes: int = Field(default=16 * MIB, gt=0)  # of a JSON body
    max_file_bytes: int = Field(default=512 * MIB, gt=0)  # of an uploaded file
    max_choices: int = Field(default=256, gt=0)  # completions that one HTTP request may ask for
    batch_requests: int = Field(default=32, gt=0)  # of all batches, that run at once
    drain_seconds: float = Field(default=8.0, ge=0)  # how long running replies may still take at shutdown
    usage_days: int = Field(default=62, ge=32)  # after which single rows of the bill are summed by day
    chip_price: float | None = Field(default=None, ge=0)  # USD an hour of a chip; None: unknown

    @field_validator(
        "api_key", "database_url", "limits_url", "tiers", "upstreams", "oidc_issuer", "oidc_audience", mode="before"
    )
    @classmethod
    def _nothing_is_none(cls, value: object) -> object:
        """An empty variable of the environment sets nothing."""
        return (value.strip() or None) if isinstance(value, str) else value

    @field_validator("oidc_admins", mode="before")
    @classmethod
    def _separated_by_commas(cls, value: object) -> object:
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @property
    def chip_price_nano(self) -> int | None:
        """Nano-dollars an hour."""
        return None if self.chip_price is None else nano(self.chip_price)

    @property
    def directory(self) -> Path:
        return self.home.expanduser().resolve()

    @property
    def files_directory(self) -> Path:
        return self.directory / "files"

    @property
    def jobs_directory(self) -> Path:
        return self.directory / "jobs"

    @property
    def batches_directory(self) -> Path:
        return self.directory / "batches"

    def make_directories(self) -> None:
        """Create `home` and its folders, readable by their owner only."""
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        for folder in (self.files_directory, self.jobs_directory, self.batches_directory):
            folder.mkdir(exist_ok=True, mode=0o700)
