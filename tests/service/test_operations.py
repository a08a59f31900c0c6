"""/health, /metrics and /coserve/stats, and the mailbox behind the streams."""

import asyncio
import threading

import httpx
from prometheus_client.parser import text_string_to_metric_families

from coserve.service import Settings, create_app
from coserve.service.mailbox import Mailbox
from tests.service.conftest import KEY
from tests.service.fake_engine import FakeEngine
from tests.service.fake_training import TRAINING


def test_health_needs_no_key_and_names_the_model(http):
    reply = http.get("/health", headers={"authorization": ""})
    told = {"status": "ok", "model": "base", "device": "cpu", "version": reply.json()["version"]}
    assert reply.json() == told


def samples(http) -> dict:
    reply = http.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain")
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(reply.text)
        for sample in family.samples
    }


def test_metrics_tell_what_the_engine_counts(http):
    found = samples(http)
    assert found["coserve_tokens_total", ("kind", "training")] == 7
    assert found["coserve_seconds_total", ("use", "idle")] == 7
    assert found["coserve_requests_total", ("outcome", "cancelled")] == 7
    assert found["coserve_kv_blocks", ("state", "used")] == 7
    assert found[("coserve_mbu",)] == 7
    assert found["coserve_step_seconds", ("kind", "predicted")] == 7
    assert found["coserve_ttft_seconds_bucket", ("le", "0.1")] == 3
    assert found["coserve_ttft_seconds_bucket", ("le", "+Inf")] == 6
    assert found[("coserve_itl_seconds_count",)] == 6
    assert found[("coserve_itl_seconds_sum",)] == 0.9


def test_http_requests_are_counted_by_pattern_not_by_path(http):
    for path in ("/v1/models/a", "/v1/models/b", "/v1/c", "/v1/d"):
        http.get(path)
    http.request("PROPFIND", "/v1/models")
    found = samples(http)

    def count(method, route, status):
        key = ("method", method), ("route", route), ("status", status)
        return found.get(("coserve_http_requests_total", *key))

    assert count("GET", "/v1/models/{model:path}", "404") == 2
    assert count("GET", "unknown", "404") == 2
    assert count("other", "/v1/models", "405") == 1


def test_stats_are_json_even_where_there_is_no_number(http):
    stats = http.get("/coserve/stats").json()
    assert stats["requests_running"] == 7
    assert stats["recent_ttft_p50"] is None
    assert stats["ttft"] == {"bounds": [0.01, 0.1], "counts": [1, 2, 3], "sum": 0.9}


def test_the_application_runs_in_any_asgi_server(tmp_path):
    app = create_app(FakeEngine(), Settings(home=tmp_path, api_key=KEY), training=TRAINING)

    async def run():
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://test") as http,
        ):
            body = {"model": "base", "prompt": "a", "stream": True}
            return await http.post("/v1/completions", json=body, headers={"authorization": f"Bearer {KEY}"})

    assert asyncio.run(run()).text.endswith("data: [DONE]\n\n")


def test_letters_of_many_threads_arrive_whole_and_in_order():
    async def run():
        mailbox, got, done = Mailbox(asyncio.get_running_loop()), [], asyncio.Event()

        def deliver(letter):
            got.append(letter)
            if len(got) == 4000:
                done.set()

        def write(author):
            for i in range(1000):
                mailbox.post(deliver, (author, i))

        for author in range(4):
            threading.Thread(target=write, args=(author,)).start()
        await asyncio.wait_for(done.wait(), 10)
        return mailbox, got

    mailbox, got = asyncio.run(run())
    assert [[i for a, i in got if a == author] for author in range(4)] == [list(range(1000))] * 4
    mailbox.post(got.append, "after the loop's end")  # nobody hears it; nothing breaks
