"""Batches: a file of requests in, a file of replies out, within a day, below everybody else and at half price.

Here lives all of `/v1/batches`: the input file and what may be wrong with it (`requests.py`, `mistakes.py`), one
request's answer without HTTP (`asking.py`), whose turn it is (`turns.py`), the replies as they come, safe from a kill
(`results.py`), the files that they become (`outputs.py`), a batch's way from state to state (`states.py`, `run.py`)
and all of them together (`batches.py`). How an answer is made and what it costs is said where it is for everybody,
in `chat.py`, `completions.py` and `admission/`: nothing of it may be repeated here.
"""
