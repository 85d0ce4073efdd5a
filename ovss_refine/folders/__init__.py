"""Results folders: whole files, settings, tables, records of what is finished."""
