"""Results of experiments: files, tables, comparisons, figures and reports."""
