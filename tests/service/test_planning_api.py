"""/v1/chips and /v1/plan: the planner's words over HTTP."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest
from typer.testing import CliRunner

from coserve.chips import catalogue
from coserve.cli import app
from coserve.planner import Ask
from coserve.service.planning import PlanBody

ASKED = {"model": "Llama-3.1-8B", "rps": 20, "ttft": "500ms", "chips": ["H100", "MI300X"], "train_tokens": "50M/day"}


def test_the_catalogue_is_listed_with_its_sources(http) -> None:
    data = http.get("/v1/chips").json()["data"]
    assert [chip["name"] for chip in data] == [chip.name for chip in catalogue()]
    assert all(figure["source"] for chip in data for figure in chip["figures"].values())


def test_a_plan_is_what_the_command_prints(http) -> None:
    reply = http.post("/v1/plan", json=ASKED)
    assert reply.status_code == 200, reply.text
    printed = CliRunner().invoke(
        app,
        ["plan", "Llama-3.1-8B", "--rps", "20", "--ttft", "500ms", "--chip", "H100", "--chip", "MI300X",
         "--train-tokens", "50M/day", "--json"],
    )  # fmt: skip
    assert reply.json() == json.loads(printed.output)


def test_it_takes_all_that_can_be_asked_but_files() -> None:
    assert set(PlanBody.model_fields) == {field.name for field in fields(Ask)} - {"trace"}
    made = Ask(**PlanBody.model_validate_json('{"model": "8B", "trace": "/etc/passwd", "more": 1}').model_dump())
    assert made == Ask("8B")


@pytest.mark.parametrize(
    ("change", "param", "message"),
    [
        ({"rps": -1}, "rps", "rps must be above 0, not -1"),
        ({"model": "/etc/config.json"}, "model", "unknown model"),
        ({"chips": ["this"]}, "chips", "on the command line only"),
        ({"chips": ["H1000"]}, "chip", "H100 SXM"),
        ({"method": "dpo"}, "method", "full"),
        ({"chips": "H100"}, "chips", "array"),
        ({"chip_price": {"H100": "cheap"}}, "chip_price.H100", "number"),
        ({"peak": "2"}, "peak", "number"),
        ({"rps": None, "train_tokens": None}, "rps", "say what is wanted"),
    ],
)
def test_mistakes_are_openai_shaped_errors(http, change, param, message) -> None:
    reply = http.post("/v1/plan", json=ASKED | change)
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert error["param"] == param and message in error["message"]


def test_it_needs_a_key(http) -> None:
    assert http.post("/v1/plan", json=ASKED, headers={"authorization": ""}).status_code == 401
