"""An OpenAI-compatible server that does nothing: `python -m benchmarks.null_upstream PORT FIRST_TOKEN_MS TOKEN_MS`.

It is the same upstream for every gateway, and as cheap as a Python server can be: plain ASGI, ready-made bytes.
"""

from __future__ import annotations

import asyncio
import sys

import uvicorn

TOKENS = 8
_HEAD = b'{"id":"chatcmpl-null","object":"chat.completion","created":1,"model":"null","choices":[{"index":0,'
_TEXT = b"word " * TOKENS
_COUNTS = b'"usage":{"prompt_tokens":10,"completion_tokens":%d,"total_tokens":%d}}' % (TOKENS, 10 + TOKENS)
_WHOLE = _HEAD + b'"message":{"role":"assistant","content":"%s"},"finish_reason":"stop"}],' % _TEXT + _COUNTS
_CHUNK = _HEAD.replace(b"chat.completion", b"chat.completion.chunk")
_TOKEN = b"data: " + _CHUNK + b'"delta":{"role":"assistant","content":"word "},"finish_reason":null}]}\n\n'
_STOP = b"data: " + _CHUNK + b'"delta":{},"finish_reason":"stop"}]}\n\n'
_USAGE = b'data: {"id":"chatcmpl-null","object":"chat.completion.chunk","created":1,"model":"null","choices":[],'
_END = _STOP + _USAGE + _COUNTS + b"\n\ndata: [DONE]\n\n"
_MODELS = b'{"object":"list","data":[{"id":"null","object":"model","created":1,"owned_by":"nobody"}]}'


class NullUpstream:
    """`first` and `token`: seconds before the first token and between tokens."""

    def __init__(self, first: float, token: float):
        self.first, self.token = first, token

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            return
        body = b""
        more = True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        if scope["method"] == "GET":
            return await self._whole(send, _MODELS)
        if self.first:
            await asyncio.sleep(self.first)
        if b'"stream":true' in body or b'"stream": true' in body:
            return await self._stream(send)
        await self._whole(send, _WHOLE)

    async def _whole(self, send, body: bytes) -> None:
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _stream(self, send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        for number in range(TOKENS):
            if number and self.token:
                await asyncio.sleep(self.token)
            await send({"type": "http.response.body", "body": _TOKEN, "more_body": True})
        await send({"type": "http.response.body", "body": _END, "more_body": False})


def main(port: str, first_ms: str, token_ms: str) -> None:
    app = NullUpstream(float(first_ms) / 1e3, float(token_ms) / 1e3)
    uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="error", access_log=False, lifespan="off")


if __name__ == "__main__":
    main(*sys.argv[1:])
