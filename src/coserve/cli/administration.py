"""Keys and projects, as the commands see them: the same requests, to a server or to the database itself."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from coserve.address import Server as Address
from coserve.address import find_server
from coserve.cli.options import home_directory
from coserve.client import ApiError, Client, Json
from coserve.errors import InvalidRequest

_ORGANIZATION = "/v1/organization"
_PROJECTS = f"{_ORGANIZATION}/projects"
_ADMIN_KEYS = f"{_ORGANIZATION}/admin_api_keys"


class Administration(Client):
    """Raises what a client raises; `InvalidRequest` for what cannot be."""

    def projects(self, *, archived: bool = False) -> list[Json]:
        """Oldest first."""
        return list(self._all(_PROJECTS, include_archived=str(archived).lower()))

    def create_project(self, body: Json) -> Json:
        return self._call("POST", _PROJECTS, json=body)

    def update_project(self, project: str, body: Json) -> Json:
        return self._call("POST", f"{_PROJECTS}/{project}", json=body)

    def archive_project(self, project: str) -> Json:
        return self._call("POST", f"{_PROJECTS}/{project}/archive")

    def keys(self, project: str) -> list[Json]:
        """Oldest first."""
        return list(self._all(f"{_PROJECTS}/{project}/api_keys"))

    def admin_keys(self) -> list[Json]:
        return list(self._all(_ADMIN_KEYS))

    def all_keys(self) -> list[Json]:
        """The admin keys, then those of each project."""
        return [*self.admin_keys(), *(key for project in self.projects() for key in self.keys(project["id"]))]

    def create_key(self, project: str, body: Json) -> Json:
        """`value` is the key, told this once."""
        return self._call("POST", f"{_PROJECTS}/{project}/api_keys", json=body)

    def create_admin_key(self, body: Json) -> Json:
        """`value` is the key, told this once."""
        return self._call("POST", _ADMIN_KEYS, json=body)

    def revoke_key(self, key_id: str) -> Json:
        """Returns the key as it was."""
        key = next((key for key in self.all_keys() if key["id"] == key_id), None)
        if key is None:
            raise InvalidRequest(f"There is no valid API key {key_id!r}.")
        owner = f"{_PROJECTS}/{key['project_id']}/api_keys" if "project_id" in key else _ADMIN_KEYS
        self._call("DELETE", f"{owner}/{key_id}")
        return key

    def _all(self, path: str, **params: str) -> Iterator[Json]:
        after: dict[str, str] = {}
        while True:
            page = self._call("GET", path, params={"limit": 100, "order": "asc", **params, **after})
            yield from page["data"]
            if not page["has_more"]:
                return
            after = {"after": page["last_id"]}

    def _call(self, method: str, path: str, **options: Any) -> Json:
        try:
            return super()._call(method, path, **options)
        except ApiError as error:
            if error.status == InvalidRequest.status:
                raise InvalidRequest(error.message, param=error.param, code=error.code) from error
            raise


def administration(
    home: Path | None,
    url: str | None,
    api_key: str | None,
    database_url: str | None,
    tiers: Path | None = None,
) -> Administration:
    """A server if one is named, else the database. What is named on the command line wins over COSERVE_URL."""
    if url and database_url:
        raise InvalidRequest("--url and --database-url are two different ways; give one of them.", param="url")
    if url or (home is None and database_url is None and os.environ.get("COSERVE_URL")):
        return Administration(find_server(home_directory(home), url=url, api_key=api_key))

    from coserve.service.admin.local import LocalTransport
    from coserve.service.settings import Settings

    given = {"home": home_directory(home), "database_url": database_url, "tiers": tiers}
    settings = Settings(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    return Administration(Address("http://database"), transport=LocalTransport(settings))
