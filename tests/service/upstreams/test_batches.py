"""Requests of a batch whose model only upstreams serve: answered there, metered as a batch's."""

from tests.service.fake_engine import FakeEngine
from tests.service.fake_training import TRAINING
from tests.service.test_batches_api import COMPLETIONS, chat, completion, create, read, wait
from tests.service.upstreams.faulty import status

TIERS = "tiers: {only: {price: {input: 1, output: 2}}}"


def test_replies_come_from_there_at_half_the_price(start, one, tmp_path):
    (tmp_path / "tiers.yaml").write_text(TIERS)
    gateway = start({"one": one.url}, tiers=tmp_path / "tiers.yaml")
    batch = wait(gateway.client, create(gateway.client, [chat("a", model="m"), chat("b", model="m")]))
    assert (batch.status, batch.request_counts.completed) == ("completed", 2)
    replies = [line["response"]["body"] for line in read(gateway.client, batch.output_file_id)]
    assert {reply["choices"][0]["message"]["content"] for reply in replies} == {"Hello, world!"}
    assert {(reply["model"], reply["service_tier"]) for reply in replies} == {("m", "batch")}
    for row in gateway.rows(2):
        assert (row["upstream"], row["batch_id"], row["terms"]) == ("one", batch.id, "batch")
        assert row["cost"] == (9 * 1_000 + 7 * 2_000) // 2


def test_one_file_may_name_models_of_here_and_there(start, one):
    gateway = start({"one": one.url}, engine=FakeEngine(), training=TRAINING)
    lines = [completion("here"), completion("there", model="m")]
    batch = wait(gateway.client, create(gateway.client, lines, COMPLETIONS))
    assert batch.status == "completed"
    assert {row["upstream"] for row in gateway.rows(2)} == {None, "one"}
    assert len(one.posts) == 1


def test_an_upstream_s_limit_is_waited_out_and_its_failure_costs_the_request(start, one):
    gateway = start({"one": one.url})
    one.script += [status(429, "retry-after: 0.1")] * 2 + [status(400)]
    batch = wait(gateway.client, create(gateway.client, [chat("a", model="m")]))
    (line,) = read(gateway.client, batch.error_file_id)
    assert line["response"]["status_code"] == 400
    assert len(one.posts) == 3
