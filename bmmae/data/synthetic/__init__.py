"""A labelled synthetic cohort: brains, lesions and outcomes with a known best score."""

from bmmae.data.synthetic.cohort import GENERATOR_VERSION, SyntheticConfig, SyntheticStudy, make_cohort, make_study

__all__ = ["GENERATOR_VERSION", "SyntheticConfig", "SyntheticStudy", "make_cohort", "make_study"]
