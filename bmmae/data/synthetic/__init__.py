"""A labelled synthetic cohort: brains, lesions and outcomes with a known best score."""
