"""Which chips to serve Llama-3.1-70B on, and what one cluster for serving and fine-tuning saves.

python -m examples.plan
"""

from __future__ import annotations

from coserve.planner import Ask, plan


def main() -> None:
    report = plan(Ask(model="Llama-3.1-70B", rps=20, ttft="500ms", itl="25ms", train_tokens="50M/day"))
    assert report.answer is not None
    for found in report.answer.plans[:5]:
        hourly = "no known price" if found.cost.per_hour is None else f"${found.cost.per_hour:.2f} an hour"
        print(f"{found.chips:4} x {found.chip.name:<16} {hourly}, bound by {found.bound}")
    for shared in report.shared[:5]:
        print(f"{shared.chip.name}: {shared.apart} chips in two clusters, {shared.together} in one")


if __name__ == "__main__":
    main()
