"""Other servers behind this one: which models go where, and how a request is passed on and its reply passed back.

Here lives whatever speaks to another OpenAI-compatible server: the configuration (`config.py`), what is known of each
upstream (`upstream.py`: breaker, room, latency), the choice between them (`routing.py`, `overflow.py`), the attempts
until a first token (`attempts.py`), the relay of the reply (`relay.py`), and the only HTTP client (`client.py`). An
upstream is reached at its configured base URL and nowhere else; no URL from a request is ever fetched, no client's key
is sent on, and no upstream's key is logged or shown. Nothing of the engine may live here but its name for a model.
"""
