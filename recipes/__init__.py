"""Recipes: how the models that ship with coserve were made, each rerunnable with one command."""
