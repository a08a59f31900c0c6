"""The one family of errors. Raised where the fact is known; turned into a reply in one place (`service/errors.py`)."""

from __future__ import annotations


class CoserveError(Exception):
    """Something was wrong in a way that the caller can act on.

    `status`, `type` and `code` are what the OpenAI error envelope says over HTTP; `param` names the input at fault.
    """

    status = 500
    type = "server_error"
    code: str | None = None

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.message = message
        self.param = param
        if code is not None:
            self.code = code


class InvalidRequest(CoserveError):
    """The input is wrong: the message says what was wrong and what would be right."""

    status = 400
    type = "invalid_request_error"


class ContextLengthExceeded(InvalidRequest):
    """Prompt and completion can never fit: refused at once, never queued."""

    code = "context_length_exceeded"


class AuthenticationError(CoserveError):
    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"


class NotFound(CoserveError):
    status = 404
    type = "invalid_request_error"
    code = "not_found"


class ModelNotFound(NotFound):
    code = "model_not_found"


class Conflict(CoserveError):
    """The object is not in a state that allows this."""

    status = 409
    type = "invalid_request_error"


class Unavailable(CoserveError):
    """A passing shortage: try again."""

    status = 503
    type = "server_error"
    code = "unavailable"


class ShuttingDown(Unavailable):
    """The engine ends: ask the next one."""

    def __init__(self) -> None:
        super().__init__("the engine is shutting down.")


class OutOfMemory(Unavailable):
    """The GPU's memory did not suffice: the message says for what, and what to lower."""

    code = "out_of_memory"


class ModelError(InvalidRequest):
    """A model directory that cannot be loaded: names the file or field at fault."""

    code = "invalid_model"


class DataError(InvalidRequest):
    """Training data that cannot be used: names the line and what is wrong with it."""

    code = "invalid_training_file"

    def __init__(self, message: str, *, line: int | None = None, param: str | None = "training_file"):
        super().__init__(f"line {line}: {message}" if line is not None else message, param=param)
        self.line = line
