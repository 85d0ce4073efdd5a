"""Folders of results: whole files, settings, records of what is finished."""
