"""Handles files of a run: configs, versions, progress and parameter paths."""
