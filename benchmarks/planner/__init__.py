"""Held against what others measured: the planner's predictions, fitted and with chips and models left out."""
