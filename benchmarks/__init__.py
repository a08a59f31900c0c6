"""Measurements that anyone can repeat: `python -m benchmarks.NAME [--quick] [--json FILE] [--model M ...]`.

`coserving` (what training costs those who are being served), `training` (against a plain PEFT loop) and
`decode` (against `transformers`); the other files are what they share. Peers are run in turn with us in one
run, never quoted. Nothing in the package may need anything from here.
"""
