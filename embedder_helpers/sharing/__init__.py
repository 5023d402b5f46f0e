"""Share embedders and results: hubs, scikit-learn and MTEB."""
