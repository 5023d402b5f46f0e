"""Tasks: texts and labels, from MTEB's data sets or local files."""
