"""Basics for the other packages: environment, progress and log, model hubs, files."""
