"""The planner: which chips, how many, at what cost, by the roofline that drives the engine.

`plan(Ask(model="Llama-3.1-70B", rps=20, ttft="500ms", itl="25ms"))` answers; `Report` holds it. From the bottom up:
`shape.py` and `layers.py` count a model's bytes and FLOPs, `replica.py` times a pass of it on chips, `serving.py` and
`training.py` say what load and training make of passes, `serving_plan.py` and `training_plan.py` look for the
cheapest chips, `economics.py` prices them, `report.py`, `plots.py` and `page.py` show it. The fitted constants are in
`constants.py`. Nothing here needs an engine or a server, or, but for measuring this machine, torch.
"""

from coserve.planner.ask import Ask, plan
from coserve.planner.report import Report, as_json

__all__ = ["Ask", "Report", "as_json", "plan"]
