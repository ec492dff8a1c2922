"""Folds, intervals, comparisons and tables."""
