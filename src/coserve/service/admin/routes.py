"""Which route of the administration leads where."""

from __future__ import annotations

from coserve.service.admin import (
    admin_keys,
    audit_logs,
    costs,
    project_keys,
    projects,
    rate_limits,
    sleep,
    tiers,
    usage,
)
from coserve.service.route import Route

ORGANIZATION = "/v1/organization"
PROJECTS = f"{ORGANIZATION}/projects"
PROJECT = PROJECTS + "/{project_id}"
ADMIN_KEYS = f"{ORGANIZATION}/admin_api_keys"

KEY_AND_PROJECT_ROUTES = [
    Route(PROJECTS, projects.list_projects),
    Route(PROJECTS, projects.create_project, methods=("POST",)),
    Route(PROJECT, projects.retrieve_project),
    Route(PROJECT, projects.update_project, methods=("POST",)),
    Route(PROJECT + "/archive", projects.archive, methods=("POST",)),
    Route(PROJECT + "/api_keys", project_keys.list_keys),
    Route(PROJECT + "/api_keys", project_keys.create_key, methods=("POST",)),
    Route(PROJECT + "/api_keys/{key_id}", project_keys.retrieve_key),
    Route(PROJECT + "/api_keys/{key_id}", project_keys.delete_key, methods=("DELETE",)),
    Route(PROJECT + "/rate_limits", rate_limits.list_rate_limits),
    Route(PROJECT + "/rate_limits/{limit_id}", rate_limits.retrieve_rate_limit),
    Route(PROJECT + "/rate_limits/{limit_id}", rate_limits.update_rate_limit, methods=("POST",)),
    Route(ADMIN_KEYS, admin_keys.list_admin_keys),
    Route(ADMIN_KEYS, admin_keys.create_admin_key, methods=("POST",)),
    Route(ADMIN_KEYS + "/{key_id}", admin_keys.retrieve_admin_key),
    Route(ADMIN_KEYS + "/{key_id}", admin_keys.delete_admin_key, methods=("DELETE",)),
]

ROUTES = [
    *KEY_AND_PROJECT_ROUTES,
    Route(f"{ORGANIZATION}/audit_logs", audit_logs.list_audit_logs),
    Route(f"{ORGANIZATION}/tiers", tiers.list_tiers),
    Route(f"{ORGANIZATION}/tiers/reload", tiers.reload_tiers, methods=("POST",)),
    Route(f"{ORGANIZATION}/usage/completions", usage.completions),
    Route(f"{ORGANIZATION}/costs", costs.list_costs),
    Route("/sleep", sleep.sleep, methods=("POST",)),
    Route("/wake_up", sleep.wake_up, methods=("POST",)),
    Route("/is_sleeping", sleep.is_sleeping),
]
