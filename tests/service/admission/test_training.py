"""Fine-tuning jobs: how many a tier allows, and what they cost."""

from __future__ import annotations

import openai
import pytest

from coserve.service.auth.projects import NewProject
from tests.service.conftest import openai_client, start
from tests.service.tenants import make_tenants
from tests.service.test_batches_api import ledger
from tests.service.test_fine_tuning_api import SLOW, create, wait

PRICE = 500  # nano-dollars a trained token of the tier developer
TRAINED = 60
REQUEST = 18 * 100 + 400  # nano-dollars of a prompt of 18 tokens and an answer of one


@pytest.fixture
def ask(tmp_path):
    """`ask(fields of a project)` starts a server and gives a client of the project."""
    servers = []

    def begin(limits_url=None, **project):
        [(_, value)] = make_tenants(tmp_path, [NewProject("p", **project)])
        servers.append(start(tmp_path, limits_url=limits_url))
        client = openai_client(servers[0], value)
        client.server = servers[0]
        return client

    yield begin
    for server in servers:
        server.stop()


def test_a_model_that_came_is_billed_once_and_a_cancelled_job_is_free(ask, tmp_path):
    client = ask(tier="developer")
    wait(client, create(client).id, "succeeded")
    client.fine_tuning.jobs.cancel(create(client, hyperparameters=SLOW).id)
    client.server.stop()
    delivered, cancelled = ledger(tmp_path)
    assert (delivered["outcome"], delivered["trained_tokens"], delivered["cost"]) == ("completed", TRAINED, 30_000)
    assert (cancelled["outcome"], cancelled["cost"]) == ("cancelled", 0)


def test_a_tier_says_how_many_jobs_run_at_once(ask):
    client = ask(tier="free")
    create(client, hyperparameters=SLOW)
    with pytest.raises(openai.RateLimitError, match="allows 1 fine-tuning jobs at once"):
        create(client)


def test_a_spent_budget_pays_for_no_job(ask):
    client = ask(tier="developer", budget=TRAINED * PRICE)
    wait(client, create(client).id, "succeeded")
    with pytest.raises(openai.RateLimitError) as refused:
        create(client)
    assert refused.value.code == "insufficient_quota"


def chat(client):
    return client.chat.completions.create(model="base", messages=[{"role": "user", "content": "Hi"}], max_tokens=1)


@pytest.mark.parametrize("store", ["memory", "redis"])
@pytest.mark.parametrize("earlier", [True, False])
def test_a_model_that_came_counts_at_once_against_the_budget(ask, request, store, earlier):
    """Also where the project asked for nothing before, and where another server has counted before."""
    url = None if store == "memory" else request.getfixturevalue("redis_url")
    client = ask(limits_url=url, tier="developer", budget=TRAINED * PRICE + 2 * REQUEST)
    if earlier:
        assert chat(client).choices
    wait(client, create(client).id, "succeeded")
    for _ in range(1 if earlier else 2):
        assert chat(client).choices
    with pytest.raises(openai.RateLimitError) as refused:
        chat(client)
    assert refused.value.code == "insufficient_quota"
