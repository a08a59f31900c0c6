"""The planner: which chips, how many, at what cost, by the roofline that drives the engine.

`shape.py` counts a model's bytes and FLOPs from its `config.json`, `formats.py` says what an element takes. Nothing
here needs torch, an engine or a server.
"""
