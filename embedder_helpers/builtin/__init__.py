"""The built-in tiny models and sample task, and how they were made."""
