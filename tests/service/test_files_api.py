"""/v1/files and /v1/models through OpenAI's client, and broken uploads through raw HTTP."""

import io

import openai
import pytest

DATA = b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
BOUNDARY = {"content-type": "multipart/form-data; boundary=X"}


def upload(client, name="data.jsonl", data=DATA):
    return client.files.create(file=(name, io.BytesIO(data)), purpose="fine-tune")


def test_a_file_comes_back_as_it_was(client, server):
    data = bytes(range(256)) * 500
    file = upload(client, "../../etc/pässe.jsonl", data)
    assert file.id.startswith("file-")
    assert (file.bytes, file.purpose, file.status) == (len(data), "fine-tune", "processed")
    assert file.filename == "pässe.jsonl"
    assert client.files.retrieve(file.id) == file
    assert client.files.content(file.id).read() == data
    assert client.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(file.id)
    assert not list((server._settings.files_directory).glob(f"{file.id}*"))


def test_pages_follow_one_another(client):
    made = [upload(client, f"{i}.jsonl").id for i in range(5)]
    newest_first = [file.id for file in client.files.list(limit=2)]
    assert newest_first[:5] == made[::-1]
    oldest_first = [file.id for file in client.files.list(limit=2, order="asc")]
    assert oldest_first == newest_first[::-1]
    page = client.files.list(limit=2, after=made[4])
    assert [file.id for file in page.data] == [made[3], made[2]]
    assert page.has_more
    assert not client.files.list(after=made[0], order="asc", limit=100).has_more
    assert list(client.files.list(purpose="batch")) == []


def form(*parts: bytes, end: bytes = b"--X--\r\n") -> bytes:
    return b"".join(b"--X\r\n" + part + b"\r\n" for part in parts) + end


def field(name: bytes, content: bytes, extra: bytes = b"") -> bytes:
    return b'Content-Disposition: form-data; name="' + name + b'"' + extra + b"\r\n\r\n" + content


FILE = field(b"file", DATA, b'; filename="a.jsonl"')
PURPOSE = field(b"purpose", b"fine-tune")


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        (form(FILE), 400, "purpose"),
        (form(PURPOSE), 400, "file"),
        (form(FILE, field(b"purpose", b"vision")), 400, "purpose"),
        (form(PURPOSE, field(b"file", b"", b'; filename="a"')), 400, "file"),
        (form(FILE, FILE, PURPOSE), 400, "file"),
        (form(FILE, PURPOSE, end=b""), 400, None),
        (form(PURPOSE, field(b"note", b"x" * 5000)), 400, "note"),
        (form(*[field(b"f%d" % i, b"") for i in range(40)]), 400, None),
        (form(PURPOSE, field(b"file", b"x" * 200_001, b'; filename="a"')), 413, "file"),
        (form(PURPOSE, field(b"file", b"x" * 400_000, b'; filename="a"')), 413, None),
        (b"nonsense", 400, None),
        (b"", 400, None),
        (form(b"no header at all"), 400, None),
    ],
)
def test_a_bad_form_is_refused_and_leaves_nothing(http, server, body, status, param):
    before = set(server._settings.files_directory.iterdir())
    reply = http.post("/v1/files", content=body, headers=BOUNDARY)
    assert reply.status_code == status, reply.text
    assert reply.json()["error"]["param"] == param
    assert set(server._settings.files_directory.iterdir()) == before


def test_a_body_that_is_no_form(http):
    assert http.post("/v1/files", json={"purpose": "fine-tune"}).status_code == 400


def test_models_are_those_of_the_engine(client, engine):
    assert [(model.id, model.owned_by) for model in client.models.list()] == [("base", "coserve")]
    assert client.models.retrieve("base").object == "model"
    with pytest.raises(openai.NotFoundError) as unknown:
        client.models.retrieve("ft:base:x:12345678")
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError):
        client.models.delete("base")
    with pytest.raises(openai.NotFoundError):
        client.models.delete("ft:base:x:12345678")
